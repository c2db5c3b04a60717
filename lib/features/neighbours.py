"""Nearest neighbours of images (as in SCAN, Van Gansbeke et al., 2020), and the views of neighbours."""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from lib.checkpoints.checkpoint import write_atomically
from lib.contracts import Method, NeighbourRecipe, Prepared, Recipe, Request, Views
from lib.datasets import Pictures
from lib.errors import UserError
from lib.features import FeatureSettings
from lib.machine import devices, processes
from lib.machine.progress import progress
from lib.session import NEIGHBOURS
from lib.transforms.random_draws import uniforms

Integers = NDArray[np.int64]

BLOCK = 2048  # images of either side that are compared at a time
SIDE = 32  # px, to which images are reduced before their pixels are compared
GIB = 2**30


class Rows(Protocol):
    """What is compared to find neighbours: a row of numbers of each image."""

    is_fixed: bool
    """Whether a run that is resumed would compute the same."""

    def readable(self) -> Integers:
        """(n,) positions of the images that have a row, ascending; all rows are computed."""

    def take(self, index: Integers) -> Tensor:
        """(n, D), of the images at (n,) positions."""

    def room(self, beside: int) -> int:
        """Images whose rows may be read from disk and held; 0: all are in memory already.

        Args:
            beside: bytes that are held with each.
        """


@dataclass(frozen=True)
class Memory:
    """Where rows are held."""

    device: torch.device
    budget: float  # GiB that they may take
    batch_size: int  # images whose rows are computed at a time


class HeldRows:
    """Rows in memory, each process having computed its share of them."""

    is_fixed = False
    what = "the features"

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._index: Integers = np.empty(0, dtype=np.int64)
        self._rows = torch.empty(0, 0)

    def _hold(self, views: Views, row: Callable[[Tensor], Tensor], count: int) -> None:
        """Compute the rows of all images that can be read.

        Raises:
            UserError: they take more than `--memory-budget`, or one is not finite.
        """
        size = self._memory.batch_size
        starts = range(0, count, size)
        batches = (np.arange(start, min(start + size, count)) for start in starts)
        shares = (torch.from_numpy(processes.share(batch)) for batch in batches)
        index = [torch.empty(0, dtype=torch.int64)]
        rows: list[Tensor] = []
        with torch.no_grad():
            for prepared in progress(views.plain(shares), "computing features for neighbours", len(starts)):
                if len(prepared.index):
                    index.append(prepared.index)
                    rows.append(row(prepared.views[0]).float().cpu())
                    self._check(rows[-1], count)
        local = torch.cat(index)
        whole, counts, width = processes.exchange(local, processes.largest(len(local)), rows[0].shape[1] if rows else 0)
        gathered = processes.gather(torch.cat(rows) if rows else torch.empty(0, width), counts)
        order = whole.argsort()
        self._index = whole[order].numpy()
        self._rows = gathered[order].to(self._memory.device)

    def _check(self, rows: Tensor, count: int) -> None:
        if not rows.isfinite().all():
            raise UserError(f"{self.what} of an image, which find its neighbours, are not finite; check --net-weights")
        size = 4 * rows.shape[1] * count / GIB
        if size > self._memory.budget:
            raise UserError(
                f"{self.what} of {count:,} images, which find neighbours, take {size:.3g} GiB: more than --memory-budget "
                f"{self._memory.budget:g}; raise it"
            )

    def take(self, index: Integers) -> Tensor:
        places = torch.from_numpy(np.searchsorted(self._index, index))
        return self._rows.index_select(0, devices.send(places, self._memory.device))

    def room(self, beside: int) -> int:
        return 0


class StartingRows(HeldRows):
    """The features of the weights with which a run starts.

    Args:
        views: of the images.
        method: whose network gives the features; it may be placed later.
        count: of the run's images.
        memory: where they are held.
    """

    def __init__(self, views: Views, method: Method, count: int, memory: Memory) -> None:
        super().__init__(memory)
        self._views = views
        self._method = method
        self._count = count

    def readable(self) -> Integers:
        was_training = self._method.training
        self._method.train(False)
        self._hold(self._views, self._method.features, self._count)
        self._method.train(was_training)
        return self._index


class PixelRows(HeldRows):
    """The pixels under the test transform, at most 32 wide and high.

    Args:
        images: opens the views of the images; they are closed afterwards.
        count: of the run's images.
        memory: where they are held.
    """

    is_fixed = True
    what = "the pixels"

    def __init__(self, images: Callable[[], Views], count: int, memory: Memory) -> None:
        super().__init__(memory)
        self._images = images
        self._count = count

    def readable(self) -> Integers:
        with closing(self._images()) as views:
            self._hold(views, _pixels, self._count)
        return self._index


def _pixels(images: Tensor) -> Tensor:
    """(N, C, H, W) → (N, C · 32 · 32), or less."""
    side = min(SIDE, images.shape[-1])
    return F.adaptive_avg_pool2d(images, side).flatten(1)


class NeighbourViews:
    """`Views` of which some show a nearest neighbour of the image.

    Which of its neighbours an image has in a step is drawn by (seed, epoch, image); several of one step differ as long
    as there are enough. Neighbours are training images that can be read. Their positions are kept in the session.

    Args:
        pictures: the images.
        views: of the images, or of their features.
        rows: what is compared.
        settings: how many neighbours, by what.
        seed: of the draws.
        shown: with `--views neighbours` on features: the recipe of each view but a request's first, all being of
            neighbours.
    """

    def __init__(
        self,
        pictures: Pictures,
        views: Views,
        rows: Rows,
        settings: FeatureSettings,
        seed: int,
        shown: Recipe | None = None,
    ) -> None:
        self.kind = views.kind
        self._views = views
        self._rows = rows
        self._shown = shown
        self._pictures = pictures
        self._seed = seed
        self._count = settings.neighbours
        self._by = settings.neighbours_by
        self._table: Integers | None = None

    @property
    def skipped(self) -> dict[int, str]:
        return self._views.skipped

    @property
    def table(self) -> Integers:
        """(N, K) positions of each image's neighbours, the nearest first; −1 where the image cannot be read."""
        if self._table is None:
            self.prepare()
        assert self._table is not None
        return self._table

    def prepare(self, folder: Path | None = None) -> None:
        self._views.prepare(folder)
        if self._table is None:
            kept = processes.from_first(lambda: None if folder is None else self._read(folder))
            self._table = self._found() if kept is None else kept
            if folder is not None and kept is None:
                content = io.BytesIO()
                np.save(content, self._table.astype(np.int32))
                write_atomically(folder / NEIGHBOURS, content.getvalue())

    def _read(self, folder: Path) -> Integers | None:
        """What the session has kept, if it has.

        Raises:
            UserError: it is damaged, or missing where it cannot be found again.
        """
        path = folder / NEIGHBOURS
        if not path.exists():
            if not self._rows.is_fixed and (folder / "checkpoint" / "latest.ckpt").exists():
                raise UserError(
                    f"{path} is missing, and the weights have changed since it was written; put it back, or start anew"
                )
            return None
        try:
            table: Integers = np.load(path, allow_pickle=False).astype(np.int64)
        except (ValueError, EOFError, OSError) as error:
            raise UserError(f"{path} is damaged ({error}); put back a copy, or start anew") from error
        if table.shape != (len(self._pictures), self._count) or table.max() >= len(self._pictures):
            raise UserError(f"{path} is of other images; put back the session's own, or start anew")
        return table

    def _found(self) -> Integers:
        readable = self._rows.readable()
        among = np.intersect1d(_trained(self._pictures), readable)
        if len(among) <= self._count:
            raise UserError(
                f"--feature-neighbours {self._count}: {len(among)} training pictures can be read; give a smaller number"
            )
        table = np.full((len(self._pictures), self._count), -1, dtype=np.int64)
        table[readable] = nearest(self._rows, readable, among, self._count)
        return table

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        table = self.table
        waiting: deque[tuple[Request, list[_Asked]]] = deque()  # views may take requests in a thread of their own

        def requests() -> Iterator[Request]:
            for request in plan:
                known = request.rows(table[request.index.numpy(), 0] >= 0)
                asked = self._asked(known, table)
                waiting.append((known, asked))
                yield from (each.request for each in asked)

        prepared = self._views.stream(requests())
        for first in prepared:
            request, asked = waiting.popleft()
            others = [next(prepared) for _ in asked[1:]]
            yield _joined(request, asked, [first, *others])

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        return self._views.plain(batches)

    def describe(self) -> str:
        by = "pixels" if self._by == "pixels" else "features"
        return f"{self._views.describe()}, a view being one of {self._count} neighbours by {by}"

    def close(self) -> None:
        self._views.close()

    def _asked(self, request: Request, table: Integers) -> list[_Asked]:
        """What the views are asked for: the image's own views, and each view of a neighbour."""
        numbers = torch.from_numpy(request.numbers)
        asked = []
        drawn = 0
        own = [place for place, recipe in enumerate(request.recipes) if not self._is_of_neighbour(place, recipe)]
        if own:
            recipes = tuple(request.recipes[place] for place in own)
            asked.append(_Asked(replace(request, recipes=recipes), own))
        for place, recipe in enumerate(request.recipes):
            if place not in own:
                shown = self._shown or Recipe(**vars(recipe))
                index = torch.from_numpy(self._drawn(request, table, drawn))
                # Drawn by the number of the image, not of the neighbour, which may be in the batch itself.
                each = Request(index, (shown,), request.epoch, numbers, len(request.recipes) + place)
                asked.append(_Asked(each, [place]))
                drawn += 1
        return asked

    def _is_of_neighbour(self, place: int, recipe: Recipe) -> bool:
        return isinstance(recipe, NeighbourRecipe) or (self._shown is not None and place > 0)

    def _drawn(self, request: Request, table: Integers, number: int) -> Integers:
        """(n,) of each image the neighbour with that number, in a random order of its neighbours."""
        candidates = table[request.index.numpy()]
        order = uniforms(self._seed, request.epoch, request.numbers, 0, self._count).argsort(axis=1)
        chosen: Integers = np.take_along_axis(candidates, order[:, number % self._count, None], axis=1)[:, 0]
        return chosen


@dataclass(frozen=True)
class _Asked:
    """Some views of a request, and their places among its recipes."""

    request: Request
    places: list[int]


def _joined(request: Request, asked: list[_Asked], prepared: list[Prepared]) -> Prepared:
    """The views of the images of which every view could be made."""
    if asked[0].places == list(range(len(request.recipes))) and asked[0].request.index is request.index:
        return prepared[0]  # no view is of a neighbour
    made = [np.isin(each.request.index.numpy(), part.index.numpy()) for each, part in zip(asked, prepared, strict=True)]
    rows = np.logical_and.reduce(made)
    views: dict[int, Tensor] = {}
    for each, part, is_made in zip(asked, prepared, made, strict=True):
        for place, view in zip(each.places, part.views, strict=True):
            views[place] = view if rows.sum() == len(view) else view[torch.from_numpy(rows[is_made]).to(view.device)]
    return Prepared(request.rows(rows).index, [views[place] for place in range(len(request.recipes))])


def check_count(settings: FeatureSettings, pictures: Pictures) -> None:
    """Raises UserError where there are not as many training images as neighbours, and one more."""
    count = len(_trained(pictures))
    if settings.neighbours >= count:
        raise UserError(
            f"--feature-neighbours {settings.neighbours}: there are {count} training pictures, "
            "and none is its own neighbour; give a smaller number"
        )


def _trained(pictures: Pictures) -> Integers:
    """(n,) positions of all images that are trained on."""
    return np.unique(np.concatenate([pictures.index(name) for name in pictures.train]))


def nearest(rows: Rows, queries: Integers, among: Integers, count: int) -> Integers:
    """(n, count) positions of the nearest of `among` by the cosine of their rows, the nearest first.

    Exact, in blocks; an image is not its own neighbour. Rows on disk are read once as queries, and once for each
    group of queries that fits into memory.

    Args:
        rows: of the images.
        queries: (n,) positions of images.
        among: (m,) positions of those that may be neighbours, each once; m > count.
        count: neighbours of each.
    """
    beside = 12 * count  # bytes: the cosines and positions of a query's neighbours
    groups = _blocks(queries, max(1, rows.room(beside) // BLOCK) * BLOCK)
    blocks = _blocks(among, BLOCK)
    steps = progress(range(len(groups) * len(blocks)), "looking for neighbours", len(groups) * len(blocks))
    found = []
    for group in groups:
        searches = [_Search(rows, own, count) for own in _blocks(group, BLOCK)]
        for block, _ in zip(blocks, steps, strict=False):
            units = F.normalize(rows.take(block), dim=1)
            for search in searches:
                search.add(units, block)
        found += [search.place.cpu().numpy() for search in searches]
    return np.concatenate(found)


class _Search:
    """The nearest so far of a block of queries.

    Args:
        rows: of the images.
        queries: (n,) positions of images.
        count: neighbours of each.
    """

    def __init__(self, rows: Rows, queries: Integers, count: int) -> None:
        self._own = F.normalize(rows.take(queries), dim=1)
        self._count = count
        self._asked = torch.from_numpy(queries).to(self._own.device)
        self._best = self._own.new_empty(len(queries), 0)
        self.place = torch.empty(len(queries), 0, dtype=torch.int64, device=self._own.device)

    def add(self, units: Tensor, index: Integers) -> None:
        """Look among some more: (m, D) of length 1, at (m,) positions."""
        positions = torch.from_numpy(index).to(self._own.device)
        cosine = self._own @ units.T
        cosine.masked_fill_(positions == self._asked[:, None], -torch.inf)
        best = torch.cat([self._best, cosine], dim=1)
        place = torch.cat([self.place, positions.expand(len(self._own), -1)], dim=1)
        self._best, kept = best.topk(min(self._count, best.shape[1]), dim=1)
        self.place = place.gather(1, kept)


def _blocks(index: Integers, size: int) -> list[Integers]:
    return [index[start : start + size] for start in range(0, len(index), size)]
