"""From settings and images to a task: the one order in which its parts are built."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from lib import networks
from lib.config.command_flags import Command
from lib.config.config import Config
from lib.contracts import NeighbourRecipe, Recipe, Task
from lib.datasets import Pictures
from lib.errors import UserError
from lib.features import FeatureSettings
from lib.features.views import columns, open_views
from lib.machine.random_seeds import SeedSettings
from lib.methods import method_checks
from lib.methods.method import Entry, MethodSettings, ViewMethod, get
from lib.networks.backbone import Backbone, Features
from lib.networks.freezing import TuningSettings
from lib.transforms import TransformSettings, needed_side, neighbour, plain_recipe
from lib.transforms.channel_statistics import measured


def build(config: Config, pictures: Pictures) -> Task:
    """Everything that a run needs, from its settings and images.

    Raises:
        UserError: from the data set, or settings that do not go together.
    """
    component = get(config.of(MethodSettings).method)
    task = component.build(config, pictures) if isinstance(component, Entry) else _task(config, pictures)
    engine = task.encode.engine if isinstance(task.encode, Backbone) else "eager"
    remark = task.encode.remark if isinstance(task.encode, Backbone) else ""
    settled = task.config.replace(feature_engine=engine, tfm_decode_side=pictures.decode_side or "full")
    return replace(task, config=settled.noted(remark) if remark else settled)


def _task(config: Config, pictures: Pictures) -> Task:
    method, encode = assemble(config, pictures)
    transforms = config.of(TransformSettings)
    plain = plain_recipe(transforms)
    asked = method_checks.checked_recipes(method, method.views(transforms))
    recipes = _shown(config, asked, plain, isinstance(encode, Backbone))
    networks.check_sizes(
        nn.Sequential(encode, method.network), config.of(networks.NetworkSettings), *(recipe.size for recipe in recipes)
    )
    if config.of(Command).trains:
        shape = (config.of(networks.NetworkSettings).net_cin, plain.size, plain.size)
        method_checks.check_classify(method, (encode.feature_dim,) if isinstance(encode, Backbone) else shape)
        method.check(config, pictures)
    if transforms.tfm_decode_side == "auto":
        seen = (
            columns(config.of(FeatureSettings), plain, recipes) if isinstance(encode, Backbone) else (plain, *recipes)
        )
        pictures.decode_at(needed_side(transforms, seen))
    config = measured(config, pictures)  # it decodes images, so it comes after whatever may be wrong
    views = open_views(config, pictures, encode, plain, recipes, method)
    source = method.source(config, pictures, views, recipes)
    perturbed = asked[method.perturbed_view]
    perturbed = perturbed.of_image if isinstance(perturbed, NeighbourRecipe) else perturbed
    return Task(method.place(config), source, views, pictures, perturbed, config, encode)


def assemble(config: Config, pictures: Pictures | None = None) -> tuple[ViewMethod, nn.Module]:
    """The method, and what stands before it: a backbone that is frozen as a whole, or nothing; neither is placed.

    Args:
        config: all settings.
        pictures: of the run, where there is one; it is seen to that method and images fit each other.

    Raises:
        UserError: settings that do not go together.
    """
    component: Any = get(config.of(MethodSettings).method)
    method_checks.check_class(component)
    settings = config.of(networks.NetworkSettings)
    if settings.net_freeze is not None:
        # What a checkpoint does not hold is drawn again, whatever was drawn before.
        torch.default_generator.manual_seed(config.of(SeedSettings).number)
    network = component.build_network(config)
    encode: nn.Module = nn.Identity()
    if networks.is_frozen(settings, network):
        frozen = _backbone(config, network)
        encode = frozen
        network = Features(frozen.feature_dim)
    method: ViewMethod = component.from_config(config, network)
    if pictures is not None:
        networks.check_sizes(nn.Sequential(encode, method.network), settings, config.of(TransformSettings).size)
        if config.of(Command).trains:
            pictures.check_clusters(method.num_clusters)
    return method, encode


def _backbone(config: Config, network: nn.Module) -> Backbone:
    """A network that is frozen as a whole."""
    name = config.of(networks.NetworkSettings).network
    tuned = config.of(TuningSettings)
    if tuned.net_lr_scale != 1:
        raise UserError("--net-lr-scale: the network is frozen as a whole, and learns at no rate; leave it out")
    fetch = None
    if config.weights_given and tuned.net_weights is not None:
        downloads = not config.of(Command).dry_run
        fetch = partial(networks.load_weights, network, name, tuned.net_weights, downloads)
    is_drawn = tuned.net_weights is None and not networks.own(name).trained
    return Backbone(network, name, is_drawn, fetch)


def _shown(config: Config, recipes: tuple[Recipe, ...], plain: Recipe, is_frozen: bool) -> tuple[Recipe, ...]:
    """What a step shows of each image; with `--views neighbours` every view but the first is of a neighbour."""
    if config.of(FeatureSettings).views != "neighbours":
        return recipes
    if is_frozen:  # the features as they are, which are the same in each epoch
        return (plain, *recipes[1:])
    return (recipes[0], *map(neighbour, recipes[1:]))
