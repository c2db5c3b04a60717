"""`Views` of kind `features`: (N, D) in the place of (N, C, H, W)."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from lib.config.command_flags import Command
from lib.config.config import Config
from lib.contracts import Method, NeighbourRecipe, Prepared, Recipe, Request, Views
from lib.datasets import DataSettings, Pictures, disk_cache
from lib.datasets.image_files import ADVICE
from lib.errors import UserError
from lib.features import FeatureSettings, neighbours
from lib.features.extraction import Extractor, encoded
from lib.features.feature_store import Shelf
from lib.features.neighbours import Memory, NeighbourViews, PixelRows, Rows, StartingRows
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
    normalisation,
)
from lib.transforms.image_reader import Reader
from lib.transforms.random_draws import uniforms

VERSION = 1  # of how features are computed; another one computes them again
Integers = NDArray[np.int64]


def open_views(
    config: Config,
    pictures: Pictures,
    encode: torch.nn.Module,
    test: Recipe,
    random: Sequence[Recipe],
    method: Method | None = None,
) -> Views:
    """The views of a run's images, or behind a frozen backbone the views' features; neighbours where they are asked for.

    Args:
        config: all settings.
        pictures: the images.
        encode: what stands before the method; a backbone is placed.
        test: the recipe of `Views.plain`.
        random: the others that a step asks for, in its order.
        method: whose features tell which images are neighbours, where there is no backbone.

    Raises:
        UserError: settings that do not go together, or as `lib.transforms.choose_backend.open_views` does.
    """
    settings = config.of(FeatureSettings)
    command = config.of(Command)
    count = len(pictures)
    images = partial(choose_backend.open_views, config, pictures, test)
    wants_all = settings.views == "neighbours"
    wants_some = any(isinstance(recipe, NeighbourRecipe) for recipe in random)
    if (wants_all or wants_some) and not command.predict:
        neighbours.check_count(settings, pictures)
    device = devices.device(config.of(DeviceSettings))
    memory = Memory(device, config.of(LoaderSettings).memory_budget, config.of(DataSettings).batch)
    seed = config.of(SeedSettings).number
    rows: Rows
    if isinstance(encode, Backbone):
        recipes = columns(settings, test, random)
        encode.place(config, [recipe.size for recipe in recipes], count * len(recipes))
        if command.predict:  # by the back end that a training run takes
            return EncodedViews(images(once=True), encode, recipes)
        if command.dry_run:
            return EncodedViews(images(), encode, recipes)
        features = FeatureViews(count, encode, recipes, seed, partial(_open_shelf, config, pictures, encode, recipes))
        if not wants_all and not wants_some:
            return features
        rows = PixelRows(images, count, memory) if settings.neighbours_by == "pixels" else features
        return NeighbourViews(pictures, features, rows, settings, seed, test if wants_all else None)
    if wants_all and not wants_some:
        raise UserError(
            "--views neighbours: a step of this method has no view but the first; give --views random, or "
            "--net-freeze '.*' without --net-freeze-epochs"
        )
    views = images()
    if not wants_some or not command.trains:  # neighbours are those of the weights with which the training started
        return views
    if settings.neighbours_by == "pixels":
        rows = PixelRows(lambda: views, count, memory)
    else:
        assert method is not None
        rows = StartingRows(views, method, count, memory)
    return NeighbourViews(pictures, views, rows, settings, seed)


def columns(settings: FeatureSettings, test: Recipe, random: Sequence[Recipe]) -> tuple[Recipe, ...]:
    """What is computed of each picture: the plain view first, then random ones, whose kinds take turns.

    Raises:
        UserError: there is not a view for each kind.
    """
    plain = canonical(test)
    kinds = [recipe for recipe in map(canonical, random) if recipe != plain]
    if settings.views == "neighbours" or not kinds:
        return (plain,)
    seen: Counter[Recipe] = Counter()
    ranked = []
    for place, recipe in enumerate(kinds):
        ranked.append((seen[recipe], place, recipe))
        seen[recipe] += 1
    ordered = [recipe for _, _, recipe in sorted(ranked, key=lambda entry: entry[:2])]
    if settings.feature_views < len(seen):
        raise UserError(
            f"--feature-views {settings.feature_views}: the views of a step are of {len(seen)} kinds, and each needs one; "
            f"give {len(seen)} or more, or {len(ordered)} so that no two of a step are the same"
        )
    return (plain, *(ordered[number % len(ordered)] for number in range(settings.feature_views)))


def canonical(recipe: Recipe) -> Recipe:
    """The same view of the image itself, stated in one way only, without what its crop does not use."""
    recipe = Recipe(**vars(recipe))
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

    def prepare(self, folder: Path | None = None) -> None:
        pass

    def describe(self) -> str:
        by = engines.title(self._encode.engine)
        return f"features of {self._encode.title} by {by}; {self._views.describe()}"

    def close(self) -> None:
        self._views.close()

    def _encoded(self, prepared: Prepared) -> Prepared:
        return Prepared(prepared.index, list(encoded(self._encode, prepared.views).unbind(dim=1)))


class FeatureViews:
    """The features of views that were drawn once.

    Which of the views of its kind an image has in a step is drawn by (seed, epoch, image); several of one step differ
    as long as there are enough. It has the `Rows` by which neighbours are found: the features of the plain views.

    Args:
        count: of the images.
        encode: the backbone, on its device.
        recipes: of the views that are computed, the plain one first.
        seed: of the draws.
        open_shelf: computes the features where they are not kept, and gives them.
    """

    kind = "features"
    is_fixed = True

    def __init__(
        self, count: int, encode: Backbone, recipes: tuple[Recipe, ...], seed: int, open_shelf: Callable[[], Shelf]
    ) -> None:
        self._count = count
        self._encode = encode
        self._recipes = recipes
        self._seed = seed
        self._open_shelf = open_shelf
        self._groups = {recipe: _places(recipes, recipe) for recipe in recipes[1:]}

    @property
    def skipped(self) -> dict[int, str]:
        return self._shelf.skipped

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        self.prepare()
        for request in plan:
            readable = request.rows(~np.isin(request.index.numpy(), list(self.skipped)))
            yield Prepared(readable.index, self._shelf.take(*self._chosen(readable)))

    def plain(self, batches: Iterable[torch.Tensor]) -> Iterator[Prepared]:
        return self.stream(Request(index, self._recipes[:1]) for index in batches)

    def prepare(self, folder: Path | None = None) -> None:
        _ = self._shelf

    def describe(self) -> str:
        name = f"{self._encode.title}, {self._encode.digest[:12]}"
        return f"features of {name}, by {engines.title(self._encode.engine)}: {self._shelf.describe()}"

    def close(self) -> None:
        pass

    def readable(self) -> Integers:
        """(n,) positions of the images that can be read, ascending."""
        return np.setdiff1d(np.arange(self._count), np.array(list(self.skipped), dtype=np.int64))

    def take(self, index: Integers) -> torch.Tensor:
        """(n, D) features of the plain views of the images at (n,) positions."""
        (features,) = self._shelf.take(index[:, None], np.zeros_like(index)[:, None])
        return features

    def room(self, beside: int) -> int:
        """As `Shelf.room`."""
        return self._shelf.room(beside)

    def _chosen(self, request: Request) -> tuple[Integers, Integers]:
        """(n, r) images, and which of their computed views, one for each recipe."""
        used: Counter[Recipe] = Counter()
        index = request.index.numpy()
        places = []
        for recipe in map(canonical, request.recipes):
            if recipe == self._recipes[0]:
                places.append(np.zeros_like(index))
            else:
                places.append(self._drawn(request, recipe, used[recipe]))
                used[recipe] += 1
        return np.repeat(index[:, None], len(places), axis=1), np.stack(places, axis=1)

    def _drawn(self, request: Request, recipe: Recipe, number: int) -> Integers:
        """(n,) of each image the view of that kind with that number, in a random order of the image's."""
        views = self._groups[recipe]
        kind = list(self._groups).index(recipe)
        order = uniforms(self._seed, request.epoch, request.numbers, kind, len(views)).argsort(axis=1)
        chosen: Integers = views[order[:, number % len(views)]]
        return chosen

    @cached_property
    def _shelf(self) -> Shelf:
        return self._open_shelf()


def _open_shelf(config: Config, pictures: Pictures, encode: Backbone, recipes: tuple[Recipe, ...]) -> Shelf:
    """The features of all images, computed where they are not kept.

    Raises:
        UserError: as `Shelf` does.
    """
    seed = config.of(FeatureSettings).feature_seed
    root = config.of(DataSettings).data_root
    channels = config.of(NetworkSettings).net_cin
    placement = devices.placement(config)
    cache = disk_cache.open_cache(config)
    names = _names(pictures, root)
    reader = Reader(pictures, channels, config.of(TransformSettings).tfm_working_size)
    extractor = Extractor(
        partial(choose_backend.open_views, config.replace(seed=seed), pictures, recipes[0], once=True),
        encode,
        recipes,
        _numbers(names),
        partial(_why_left_out, reader, config.of(DataSettings).on_bad_image == "skip"),
    )
    # What there was not when features were first kept is no part of the key unless it is in use.
    engine = () if encode.engine == "eager" else (encode.engine,)
    reduced = () if pictures.decode_side is None else (f"decoded at {pictures.decode_side}",)
    key = (
        VERSION, encode.digest, recipes, normalisation(config.of(TransformSettings), channels), channels,
        config.of(TransformSettings).tfm_working_size, config.of(ViewSettings).tfm_backend, placement.precision,
        config.of(PrecisionSettings).tf32, seed, "" if pictures.files is None else os.path.realpath(_base(root)),
        *engine, *reduced,
    )  # fmt: skip
    stamps = np.zeros((len(pictures), 2), dtype=np.int64) if pictures.files is None else pictures.stamps
    store = (
        None if cache.root is None else disk_cache.Store(cache.root, key, 1, names, stamps, "features", cache.is_chosen)
    )
    return Shelf(extractor, store, cache.bound, config.of(LoaderSettings).memory_budget, placement.device)


def _why_left_out(reader: Reader, skips: bool, position: int) -> str:
    """Why an image cannot be read; empty: it can be, or it may not be left out."""
    if not skips:
        return ""
    try:
        reader.decode(position)
    except UserError as error:
        return str(error).removesuffix(ADVICE)
    return ""


def _places(recipes: Sequence[Recipe], recipe: Recipe) -> Integers:
    return np.array([place for place, other in enumerate(recipes) if other == recipe and place], dtype=np.int64)


def _base(root: str) -> str:
    return str(Path(root).expanduser())


def _names(pictures: Pictures, root: str) -> list[str]:
    """What tells each picture from others: its file's name below the folder, or else its content."""
    if pictures.files is not None:
        base = _base(root)
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
