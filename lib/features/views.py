"""`Views` of kind `features`: (N, D) in the place of (N, C, H, W)."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from lib.config.command_flags import Command
from lib.config.config import Config
from lib.contracts import Prepared, Recipe, Request, Views
from lib.datasets import DataSettings, Pictures, disk_cache
from lib.datasets.disk_cache import CacheSettings
from lib.datasets.image_files import ADVICE
from lib.errors import UserError
from lib.features import FeatureSettings
from lib.features.extraction import Extractor, encoded
from lib.features.feature_store import Shelf
from lib.features.neighbours import nearest
from lib.machine import devices
from lib.machine.devices import DeviceSettings
from lib.machine.precision import PrecisionSettings
from lib.machine.random_seeds import SeedSettings
from lib.networks import NetworkSettings, engines
from lib.networks.backbone import Backbone
from lib.transforms import (
    LoaderSettings,
    TransformSettings,
    ViewSettings,
    choose_backend,
    needed_side,
    normalisation,
)
from lib.transforms.image_reader import Reader
from lib.transforms.random_draws import uniforms

VERSION = 1  # of how features are computed; another one computes them again
Integers = NDArray[np.int64]


def open_views(
    config: Config, pictures: Pictures, encode: torch.nn.Module, test: Recipe, random: Sequence[Recipe]
) -> Views:
    """The views of a run's pictures, or behind a frozen backbone the views' features.

    Args:
        config: all settings.
        pictures: the pictures.
        encode: what stands before the method; a backbone is placed.
        test: the recipe of `Views.plain`.
        random: the others that a step asks for, in its order.

    Raises:
        UserError: settings that do not go together, or as `lib.transforms.choose_backend.open_views` does.
    """
    settings = config.of(FeatureSettings)
    command = config.of(Command)
    if config.of(TransformSettings).tfm_decode_side == "auto":
        needed = columns(config, test, random) if isinstance(encode, Backbone) else (test, *random)
        pictures.decode_at(needed_side(config.of(TransformSettings), needed))
    if not isinstance(encode, Backbone):
        if settings.views == "neighbours":
            raise UserError(
                "views are neighbours, which are looked for among features that stay, so the whole network has to be frozen "
                "for ever; give --views random, or --net-freeze '.*' without --net-freeze-epochs"
            )
        return choose_backend.open_views(config, pictures, test)
    recipes = columns(config, test, random)
    encode.place(config, [recipe.size for recipe in recipes])
    if command.predict:  # by the back end that a training run takes
        return EncodedViews(choose_backend.open_views(config, pictures, test, once=True), encode, recipes)
    if settings.views == "neighbours" and settings.neighbours >= len(_trained(pictures)):
        raise UserError(
            f"--feature-neighbours {settings.neighbours}: there are {len(_trained(pictures))} training pictures, "
            "and none is its own neighbour; give a smaller number"
        )
    if command.dry_run:
        return EncodedViews(choose_backend.open_views(config, pictures, test), encode, recipes)
    return FeatureViews(config, pictures, encode, recipes)


def columns(config: Config, test: Recipe, random: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """What is computed of each picture: the plain view first, then random ones, whose kinds take turns.

    Raises:
        UserError: there is not a view for each kind.
    """
    settings = config.of(FeatureSettings)
    if settings.views == "neighbours":
        return (canonical(test),)
    seen: Counter[Recipe] = Counter()
    ranked = []
    for place, recipe in enumerate(map(canonical, random)):
        ranked.append((seen[recipe], place, recipe))
        seen[recipe] += 1
    ordered = [recipe for _, _, recipe in sorted(ranked, key=lambda entry: entry[:2])]
    if settings.feature_views < len(seen):
        raise UserError(
            f"--feature-views {settings.feature_views}: the views of a step are of {len(seen)} kinds, and each needs one; "
            f"give {len(seen)} or more, or {len(ordered)} so that no two of a step are the same"
        )
    return (canonical(test), *(ordered[number % len(ordered)] for number in range(settings.feature_views)))


def canonical(recipe: Recipe) -> Recipe:
    """The same view, stated in one way alone, without what its crop does not use."""
    plain = Recipe(recipe.size, recipe.crop)
    if recipe.crop == "resized":
        return replace(recipe, resize=plain.resize)
    return replace(recipe, scale=plain.scale, ratio=plain.ratio)


class EncodedViews:
    """The features of views of pictures, computed whenever they are asked for.

    Args:
        views: of the pictures.
        encode: the backbone.
        recipes: of what a training run would compute once.
    """

    kind = "encoded"

    def __init__(self, views: Views, encode: Backbone, recipes: tuple[Recipe, ...]) -> None:
        self._views = views
        self._encode = encode
        self.recipes = recipes
        self.skipped = views.skipped

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        return map(self._encoded, self._views.stream(plan))

    def plain(self, batches: Iterable[torch.Tensor]) -> Iterator[Prepared]:
        return map(self._encoded, self._views.plain(batches))

    def prepared(self) -> Self:
        return self

    def describe(self) -> str:
        by = engines.title(self._encode.engine)
        return f"features of {self._encode.title} by {by}; {self._views.describe()}"

    def close(self) -> None:
        self._views.close()

    def _encoded(self, prepared: Prepared) -> Prepared:
        return Prepared(prepared.index, list(encoded(self._encode, prepared.views).unbind(dim=1)))


class FeatureViews:
    """The features of views that were drawn once, or of nearest neighbours.

    Which of the views of its kind, or of its neighbours, a picture has in a step is drawn by (seed, epoch, picture);
    several of one step differ as long as there are enough.

    Args:
        config: all settings.
        pictures: the pictures.
        encode: the backbone, on its device.
        recipes: of the views that are computed, the plain one first.
    """

    kind = "features"

    def __init__(self, config: Config, pictures: Pictures, encode: Backbone, recipes: tuple[Recipe, ...]) -> None:
        self._config = config
        self._pictures = pictures
        self._encode = encode
        self._recipes = recipes
        self._seed = config.of(SeedSettings).seed or 0
        self._settings = config.of(FeatureSettings)
        self._groups = {recipe: _places(recipes, recipe) for recipe in recipes[1:]}

    @property
    def skipped(self) -> dict[int, str]:
        return self._shelf.skipped

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        self.prepared()
        for request in plan:
            index = request.index.numpy()
            index = index[~np.isin(index, list(self.skipped))]
            yield Prepared(torch.from_numpy(index), self._shelf.take(*self._chosen(index, request)))

    def plain(self, batches: Iterable[torch.Tensor]) -> Iterator[Prepared]:
        return self.stream(Request(index, self._recipes[:1]) for index in batches)

    def prepared(self) -> Self:
        if self._settings.views == "neighbours":
            _ = self._neighbours
        _ = self._shelf
        return self

    def describe(self) -> str:
        known = self._settings.neighbours
        drawn = f", a view being one of {known} neighbours" if self._settings.views == "neighbours" else ""
        name = f"{self._encode.title}, {self._encode.digest[:12]}"
        return f"features of {name}, by {engines.title(self._encode.engine)}: {self._shelf.describe()}{drawn}"

    def close(self) -> None:
        pass

    def _chosen(self, index: Integers, request: Request) -> tuple[Integers, Integers]:
        """(n, r) pictures, and which of their computed views, one for each recipe."""
        used: Counter[Recipe | None] = Counter()
        rows = []
        places = []
        for recipe in map(canonical, request.recipes):
            if recipe == self._recipes[0]:
                row = index
                place = np.zeros_like(index)
            elif self._settings.views == "neighbours":
                row = self._drawn(self._neighbours[index], index, request.epoch, 0, used[None])
                place = np.zeros_like(index)
                used[None] += 1
            else:
                own = self._groups[recipe]
                kind = list(self._groups).index(recipe)
                candidates = np.broadcast_to(own, (len(index), len(own)))
                row = index
                place = self._drawn(candidates, index, request.epoch, kind, used[recipe])
                used[recipe] += 1
            rows.append(row)
            places.append(place)
        return np.stack(rows, axis=1), np.stack(places, axis=1)

    def _drawn(self, candidates: Integers, index: Integers, epoch: int, kind: int, number: int) -> Integers:
        """(n,) the so-manieth of each row of candidates, (n, m), in a random order of their own."""
        count = candidates.shape[1]
        order = uniforms(self._seed, epoch, index, kind, count).argsort(axis=1)
        chosen: Integers = np.take_along_axis(candidates, order[:, number % count, None], axis=1)[:, 0]
        return chosen

    @cached_property
    def _shelf(self) -> Shelf:
        config = self._config
        loading = self._config.of(LoaderSettings)
        names = _names(self._config, self._pictures)
        inner = config.replace(seed=self._settings.feature_seed)
        extractor = Extractor(
            partial(choose_backend.open_views, inner, self._pictures, self._recipes[0], once=True),
            self._encode,
            self._recipes,
            _numbers(names),
            self._broken,
        )
        bound = config.of(CacheSettings).disk_cache * disk_cache.GIB if disk_cache.writes(config) else None
        device = devices.device(config.of(DeviceSettings))
        return Shelf(extractor, self._store(names), bound, loading.memory_budget, device)

    def _broken(self, position: int) -> str:
        if self._config.of(DataSettings).on_bad_image == "error":
            return ""
        channels = self._config.of(NetworkSettings).net_cin
        size = self._config.of(TransformSettings).tfm_working_size
        try:
            Reader(self._pictures, channels, size).decode(position)
        except UserError as error:
            return str(error).removesuffix(ADVICE)
        return ""

    def _store(self, names: Sequence[str]) -> disk_cache.Store | None:
        place = disk_cache.folder(self._config)
        pictures = self._pictures
        config = self._config
        if place is None:
            return None
        transforms = config.of(TransformSettings)
        precision = config.of(PrecisionSettings)
        channels = config.of(NetworkSettings).net_cin
        root = "" if pictures.files is None else os.path.realpath(_base(config))
        # What there was not when features were first kept is no part of the key unless it is in use.
        engine = () if self._encode.engine == "eager" else (self._encode.engine,)
        reduced = () if pictures.decode_side is None else (f"decoded at {pictures.decode_side}",)
        key = (
            VERSION, self._encode.digest, self._recipes, normalisation(transforms, channels), channels,
            transforms.tfm_working_size, config.of(ViewSettings).tfm_backend, precision.precision, precision.tf32,
            self._settings.feature_seed, root, *engine, *reduced,
        )  # fmt: skip
        stamps = np.zeros((len(pictures), 2), dtype=np.int64) if pictures.files is None else pictures.stamps
        is_chosen = config.of(CacheSettings).cache is not None
        return disk_cache.Store(place, key, 1, names, stamps, "features", is_chosen)

    @cached_property
    def _neighbours(self) -> Integers:
        """(N, K) positions of each picture's neighbours."""
        skipped = np.array(list(self.skipped), dtype=np.int64)
        among = np.setdiff1d(_trained(self._pictures), skipped)
        if len(among) <= self._settings.neighbours:
            raise UserError(
                f"--feature-neighbours {self._settings.neighbours}: {len(among)} training pictures can be read; "
                "give a smaller number"
            )
        return nearest(self._shelf, np.arange(len(self._pictures)), among, self._settings.neighbours)


def _places(recipes: Sequence[Recipe], recipe: Recipe) -> Integers:
    return np.array([place for place, other in enumerate(recipes) if other == recipe and place], dtype=np.int64)


def _trained(pictures: Pictures) -> Integers:
    """(n,) positions of all pictures that are trained on."""
    return np.unique(np.concatenate([pictures.index(name) for name in pictures.train]))


def _base(config: Config) -> str:
    return str(Path(config.of(DataSettings).data_root).expanduser())


def _names(config: Config, pictures: Pictures) -> list[str]:
    """What tells each picture from others: its file's name below the folder, or else its content."""
    if pictures.files is not None:
        base = _base(config)
        return [file.removeprefix(base) for file in pictures.files]
    found = []
    for positions, part in pictures.parts():
        array = getattr(part, "array", None)
        for number in range(len(positions)):
            if array is not None:
                content = array[number].tobytes()
                kind = str(array.shape[1:])
            else:
                try:
                    image = part[number][0]
                    content = image.tobytes()
                    kind = f"{image.mode} {image.size}"
                except Exception:  # the image is unreadable, and whoever needs it says so
                    content = b""
                    kind = f"unreadable {positions[number]}"
            found.append(hashlib.blake2b(content + kind.encode(), digest_size=16).hexdigest())
    return found


def _numbers(names: Sequence[str]) -> Integers:
    """(N,) what stands for each picture in the draws: it follows from its name, not from its place among others."""
    digests = (hashlib.blake2b(os.fsencode(name), digest_size=8).digest() for name in names)
    return np.frombuffer(b"".join(digests), dtype=np.int64)
