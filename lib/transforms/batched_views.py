"""The `batched` back end: all images as bytes on the training device, whole batches transformed at once.

Images of several sizes are transformed in groups, padded; the padding has no weight. Nothing is copied to the device
but the draws.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.contracts import Prepared, Recipe, Request
from lib.machine import devices
from lib.machine.background import ahead
from lib.transforms import view_operations
from lib.transforms.images_in_memory import Part
from lib.transforms.random_draws import Draws, Integers, draw
from lib.transforms.view_operations import Floats32

WORK = 2**28  # bytes, which may be at work at a time,
STATIC_WORK = 2**30  # and in the static form, where fewer images at a time are more operations


@dataclass(frozen=True)
class Finish:
    """What happens to views at the end: they are normalised, and laid out as the network wants them."""

    means: Tensor  # (C, 1, 1, 1), on the scale [0, 1]
    stds: Tensor
    channels_last: bool

    def __call__(self, planes: Tensor, views: int) -> Tensor:
        """(C, N·V, size, size), which changes → (V, N, C, size, size)."""
        stacked = torch.unflatten(planes.sub_(self.means).div_(self.stds), 1, (-1, views))  # (C, N, V, size, size)
        if self.channels_last:
            return stacked.permute(2, 1, 3, 4, 0).contiguous().permute(0, 1, 4, 2, 3)
        return stacked.permute(2, 1, 0, 3, 4).contiguous()


@dataclass(frozen=True)
class Stack:
    """Views of one size, which are made together."""

    size: int
    copies: tuple[int, ...]  # their positions among the recipes


@dataclass(frozen=True)
class Run:
    """Images that are at work at a time, on the device."""

    groups: tuple[Tensor, ...]  # (n, H, C, W) bytes of one shape each
    numbers: tuple[Tensor, ...]  # for each stack, of `view_operations.static_numbers`


class DrawnViews(Sequence[Tensor]):
    """Views that are drawn, and made when they are first looked at.

    `make` makes them anew. It only works on tensors, and its operations and shapes do not depend on the draws, so a
    compiled step can contain it (where `is_static`).

    Args:
        runs: the images, and their draws.
        stacks: of the views.
        back: (N,) where each image is among those of the runs; none: in their order.
        finish: of each view.
        is_static: other images of the same number go through the same operations on the same shapes.
    """

    def __init__(
        self, runs: Sequence[Run], stacks: Sequence[Stack], back: Tensor | None, finish: Finish, is_static: bool
    ) -> None:
        self.runs = tuple(runs)
        self.stacks = tuple(stacks)
        self.back = back
        self.finish = finish
        self.is_static = is_static

    def make(self) -> list[Tensor]:
        """For each recipe (N, C, size, size)."""
        made: dict[int, Tensor] = {}
        for number, stack in enumerate(self.stacks):
            parts = [self._made_of(run, number) for run in self.runs]
            views = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
            if self.back is not None:
                views = views.index_select(1, self.back)
            made.update(zip(stack.copies, views.unbind(), strict=True))
        return [made[copy] for copy in range(len(made))]

    def _made_of(self, run: Run, number: int) -> Tensor:
        stack = self.stacks[number]
        plan = view_operations.static_plan(stack.size, len(stack.copies), run.numbers[number])
        return self.finish(view_operations.view([group / 255 for group in run.groups], plan), plan.views)

    @cached_property
    def _kept(self) -> list[Tensor]:
        return self.make()

    def __len__(self) -> int:
        return sum(len(stack.copies) for stack in self.stacks)

    @overload
    def __getitem__(self, copy: int) -> Tensor: ...

    @overload
    def __getitem__(self, copy: slice) -> list[Tensor]: ...

    def __getitem__(self, copy: int | slice) -> Tensor | list[Tensor]:
        return self._kept[copy]


@dataclass(frozen=True)
class _Batch:
    """A batch in the order of its images' shapes, and its draws."""

    index: Tensor  # (N,) in the order of the request
    stacks: list[Stack]
    runs: list[Integers]
    numbers: list[list[Floats32]]  # for each run and stack
    back: Integers | None  # where each image of the request is among those of the runs


class BatchedViews:
    """`Views` of pictures that fit into the device's memory.

    Args:
        parts: the run's pictures, but for the skipped.
        skipped: positions of those that could not be read, and why.
        test: the recipe of `plain`.
        means, stds: one per channel, on the scale [0, 1].
        seed: of the draws.
        device: where the pictures are, and the views are made.
        compiled: a step compiles its views.
        channels_last: the layout of the views.
    """

    kind = "batched"

    static: bool
    """Whether every batch of images of one size goes through the same operations on the same shapes, whatever was
    drawn: on a GPU, where each operation is launched, and where a step is compiled. A CPU computes fewer numbers without."""

    def __init__(
        self,
        parts: Sequence[Part],
        skipped: dict[int, str],
        test: Recipe,
        means: tuple[float, ...],
        stds: tuple[float, ...],
        *,
        seed: int,
        device: torch.device,
        compiled: bool = False,
        channels_last: bool = False,
    ) -> None:
        self.skipped = skipped
        self.static = compiled or device.type != "cpu"
        # (n, H, C, W), whatever the order in memory.
        self._parts = [_tensor(part.array).permute(0, 1, 3, 2).to(device) for part in parts]
        shapes = [part.shape[1:] for part in self._parts]
        self._shape = np.array([shapes.index(shape) for shape in shapes])  # of each part
        self._numbers = np.array([shape.numel() for shape in shapes])  # of a picture in it
        # For each of the run's pictures its part, its row there, and its own height and width.
        count = 1 + max(*skipped, *(int(part.positions[-1]) for part in parts), 0)
        self._part = np.zeros(count, dtype=np.int64)
        self._row = np.zeros(count, dtype=np.int64)
        self._sizes = np.zeros((count, 2), dtype=np.int64)
        for number, part in enumerate(parts):
            self._part[part.positions] = number
            self._row[part.positions] = np.arange(len(part.positions))
            self._sizes[part.positions] = part.sizes
        self._unreadable = np.array(sorted(skipped), dtype=np.int64)
        self._test = test
        self._seed = seed
        self._device = device
        mean, std = (torch.tensor(values, device=device)[:, None, None, None] for values in (means, stds))
        self._finish = Finish(mean, std, channels_last)

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        if not self.static:
            for request in plan:
                readable = self._readable(request)
                yield Prepared(readable.index, self._views(readable))
            return
        for batch in ahead(self._draw(self._readable(request)) for request in plan):
            yield Prepared(batch.index, self._sent(batch))

    def _readable(self, request: Request) -> Request:
        return request.rows(~np.isin(request.index.numpy(), self._unreadable))

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        return self.stream(Request(index, (self._test,)) for index in batches)

    def prepare(self, folder: Path | None = None) -> None:
        pass

    def describe(self) -> str:
        sizes = np.delete(self._sizes, self._unreadable, axis=0)
        kinds = len(np.unique(sizes[:, 0] << 32 | sizes[:, 1]))
        height, width = sizes[0]
        which = f"{width}×{height} px" if kinds == 1 else f"{kinds:,} sizes"
        return f"batched, {len(sizes):,} images of {which} in memory"

    def close(self) -> None:
        pass

    def _draw(self, request: Request) -> _Batch:
        ordered, back = self._by_shape(request)
        stacks = _stacks(request.recipes)
        runs = list(self._runs(ordered, max(len(stack.copies) for stack in stacks), STATIC_WORK))
        numbers = [
            [
                view_operations.static_numbers(
                    [request.recipes[copy] for copy in stack.copies],
                    [self._drawn(run, copy) for copy in stack.copies],
                    self._sizes[run.index.numpy()],
                )
                for stack in stacks
            ]
            for run in runs
        ]
        return _Batch(request.index, stacks, [run.index.numpy() for run in runs], numbers, back)

    def _drawn(self, run: Request, copy: int) -> Draws:
        sizes = self._sizes[run.index.numpy()]
        return draw(run.recipes[copy], sizes, self._seed, run.epoch, run.numbers, run.first_copy + copy)

    def _sent(self, batch: _Batch) -> DrawnViews:
        """The draws, and the bytes of the images beside them, on the device."""
        runs = [
            Run(
                tuple(self._bytes(group) for group in self._groups(index)),
                tuple(self._send(each) for each in numbers),
            )
            for index, numbers in zip(batch.runs, batch.numbers, strict=True)
        ]
        back = None if batch.back is None else self._send(batch.back)
        is_static = len(runs) == 1 and not self._shape.any()  # images of one shape
        return DrawnViews(runs, batch.stacks, back, self._finish, is_static)

    def _views(self, request: Request) -> list[Tensor]:
        """On a CPU, whose caches are small: one recipe after the other, and each operation for images that drew it."""
        ordered, back = self._by_shape(request)
        by_run = [self._views_of(run) for run in self._runs(ordered, 1, WORK)]
        views = by_run[0] if len(by_run) == 1 else [torch.cat(parts) for parts in zip(*by_run, strict=True)]
        return views if back is None else [view.index_select(0, torch.from_numpy(back)) for view in views]

    def _views_of(self, run: Request) -> list[Tensor]:
        index = run.index.numpy()
        groups = [self._floats(group) for group in self._groups(index)]
        views = []
        for copy, recipe in enumerate(run.recipes):
            plan = view_operations.plan(recipe, self._drawn(run, copy), self._sizes[index], self._device)
            views.append(self._finish(view_operations.view(groups, plan), 1)[0])
        return views

    def _by_shape(self, request: Request) -> tuple[Request, Integers | None]:
        """The images in the order of their shapes, and where each of them has gone, if any has."""
        shapes = self._shape[self._part[request.index.numpy()]]
        if len(np.unique(shapes)) < 2:
            return request, None
        order = np.argsort(shapes, kind="stable")
        return request.rows(order), np.argsort(order)

    def _groups(self, index: Integers) -> list[Integers]:
        """Those of each shape."""
        shapes = self._shape[self._part[index]]
        return np.split(index, np.flatnonzero(np.diff(shapes)) + 1)

    def _runs(self, request: Request, views: int, work: int) -> Iterator[Request]:
        """As many at a time as `work` allows; about 8 float copies of a picture are alive for each of `views` at once."""
        ends = np.cumsum(self._numbers[self._part[request.index.numpy()]])
        start = 0
        while start == 0 or start < len(ends):
            limit = work // (32 * views) + (ends[start - 1] if start else 0)
            stop = max(start + 1, int(np.searchsorted(ends, limit, side="right")))
            yield request.rows(np.arange(start, min(stop, len(ends))))
            start = stop

    def _floats(self, index: Integers) -> Tensor:
        """(N, H, C, W) floats in [0, 1] of pictures of one shape."""
        holder = self._part[index]
        row = self._row[index]
        first = holder[0] if len(index) else 0
        pictures = torch.empty(len(index), *self._parts[first].shape[1:], device=self._device)
        for number in np.unique(holder):
            local = np.flatnonzero(holder == number)
            chosen = self._parts[number].index_select(0, torch.from_numpy(row[local]))
            if len(local) == len(index):
                pictures.copy_(chosen)
            else:
                pictures[torch.from_numpy(local)] = chosen.float()
        return pictures.div_(255)

    def _bytes(self, index: Integers) -> Tensor:
        """(N, H, C, W) bytes of pictures of one shape, by the same operations whichever of the parts hold them."""
        holder = self._part[index]
        row = self._row[index]
        first, *others = np.flatnonzero(self._shape == self._shape[holder[0] if len(index) else 0])
        images: Tensor = self._parts[first].index_select(0, self._send(np.where(holder == first, row, 0)))
        for number in others:
            is_there = holder == number
            chosen = self._parts[number].index_select(0, self._send(np.where(is_there, row, 0)))
            images = torch.where(self._send(is_there)[:, None, None, None], chosen, images)
        return images

    def _send(self, values: NDArray[Any]) -> Tensor:
        return devices.send(torch.from_numpy(values), self._device)


def _stacks(recipes: Sequence[Recipe]) -> list[Stack]:
    """Views of one size together."""
    sizes = [recipe.size for recipe in recipes]
    return [
        Stack(each, tuple(copy for copy, size in enumerate(sizes) if size == each)) for each in dict.fromkeys(sizes)
    ]


def _tensor(array: NDArray[np.uint8]) -> Tensor:
    """The array itself, unless PyTorch cannot hold its order."""
    if min(array.strides) < 0:
        array = np.ascontiguousarray(array)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # read-only memory: nothing here writes to it
        return torch.from_numpy(array)
