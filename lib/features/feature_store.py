"""Where features lie: in memory where there is room, else on disk."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lib.datasets.disk_cache import GIB, Store
from lib.errors import UserError
from lib.features.extraction import Extractor, Rows
from lib.machine import devices

T = TypeVar("T")
Integers = NDArray[np.int64]


class Shelf:
    """The features of all pictures of a run, computed where they are not kept.

    Args:
        extractor: computes them.
        store: where they are kept; none: nowhere.
        bound: bytes that all that is kept may take; none: nothing is to be written.
        budget: GiB of memory that features may take.
        device: where they are wanted.

    Raises:
        UserError: a picture cannot be read, or there is room for the features neither in memory nor on disk.
    """

    def __init__(
        self, extractor: Extractor, store: Store | None, bound: float | None, budget: float, device: torch.device
    ) -> None:
        self._extractor = extractor
        self._store = store
        self._bound = bound
        self._device = device
        self._budget = budget
        self._held = None
        self._fill()
        if 4 * np.prod(extractor.shape) <= budget * GIB:
            self._held = self._load()
        elif len(rest := self._unkept()):
            raise UserError(self._no_room(len(rest)))

    @property
    def skipped(self) -> dict[int, str]:
        """Positions of the pictures that could not be read, and why."""
        return self._extractor.skipped

    def take(self, index: Integers, column: Integers) -> list[Tensor]:
        """Features of several views: r of (n, D), on the device.

        Args:
            index: (n, r) positions of pictures.
            column: (n, r) which view of each.
        """
        if self._held is not None:
            places = torch.from_numpy((index * self._held.shape[1] + column).T.reshape(-1))
            rows = self._held.flatten(0, 1).index_select(0, devices.send(places, self._device))
        else:
            kept = self._read(np.unique(index).tolist())
            pairs = zip(index.T.reshape(-1).tolist(), column.T.reshape(-1).tolist(), strict=True)
            found = [kept[position][view] for position, view in pairs]
            shape = (len(found), self._extractor.shape[2])
            rows = devices.send(torch.from_numpy(np.array(found, dtype=np.float32).reshape(shape)), self._device)
        return list(rows.view(index.shape[1], *index.shape[:1], -1).unbind())

    def room(self, beside: int) -> int:
        """Pictures of which a view's features may be read from disk and held; 0: all are in memory already.

        Args:
            beside: bytes that are held with each.
        """
        if self._held is not None:
            return 0
        return int(self._budget * GIB / (4 * self._extractor.shape[2] + beside))

    def describe(self) -> str:
        count, views, dimension = self._extractor.shape
        computed = self._extractor.computed
        size = 4 * np.prod(self._extractor.shape) / GIB
        seconds = self._extractor.seconds
        rate = computed / max(seconds, 1e-3)
        made = f"{computed:,} computed in {seconds:,.1f} s, {rate:,.0f} images/s" if computed else "none to compute"
        place = "in memory" if self._held is not None else "read from disk by batches, because of --memory-budget"
        unkept = len(self._unkept())
        lost = f"; {unkept:,} are not kept on disk (--disk-cache), and are computed at each start" if unkept else ""
        return f"{count:,} images in {views} view{'s' * (views > 1)} of {dimension} numbers ({size:.2g} GiB), {made}; {place}{lost}"

    def _unkept(self) -> Integers:
        """Positions of the pictures that can be read and are not kept."""
        missing = np.arange(self._extractor.shape[0]) if self._store is None else self._store.missing
        return np.setdiff1d(missing, np.array(list(self.skipped), dtype=np.int64))

    def _load(self) -> Tensor:
        """(N, views, D), zero for what could not be read."""
        table = np.zeros(self._extractor.shape, dtype=np.float32)
        wanted = []
        for position in range(len(table)):
            kept = None if self._store is None else self._store.read(position)
            if kept is not None and kept.size == table[position].nbytes:
                table[position] = _rows(kept)
            elif position not in self.skipped:
                wanted.append(position)
        for position, rows in zip(wanted, self._extractor.rows(wanted), strict=True):
            if rows is not None:
                table[position] = rows
        return torch.from_numpy(table).to(self._device)

    def _fill(self) -> None:
        """Compute and keep what is not kept."""
        if self._store is not None and self._bound is not None:
            self._store.fill(lambda wanted: map(_bytes, self._extractor.rows(wanted)), self._bound)

    def _read(self, positions: list[int]) -> dict[int, Rows]:
        """Features by position, computed again where what was kept is gone or damaged.

        Raises:
            UserError: an image can no longer be read.
        """
        found = self._kept(positions)
        if len(found) < len(positions):
            self._fill()
            found = self._kept(positions)
        lost = [position for position in positions if position not in found]
        for position, rows in zip(lost, self._extractor.rows(lost), strict=True):
            if rows is None:
                raise UserError(f"an image can no longer be read: {self.skipped[position]}; start again")
            found[position] = rows
        return found

    def _kept(self, positions: list[int]) -> dict[int, Rows]:
        assert self._store is not None
        found = {position: self._store.read(position) for position in positions}
        return {position: _rows(kept) for position, kept in found.items() if kept is not None}

    def _no_room(self, count: int) -> str:
        size = 4 * np.prod(self._extractor.shape) / GIB
        return (
            f"the features take {size:.3g} GiB: more than --memory-budget {self._budget:g}, and on disk there is no room for "
            f"{count:,} pictures; raise one of --memory-budget and --disk-cache, or take fewer --feature-views"
        )


def _bytes(rows: Rows | None) -> NDArray[np.uint8] | None:
    """(views, bytes, 1), as a `Store` takes them."""
    return None if rows is None else np.ascontiguousarray(rows).view(np.uint8)[..., None]


def _rows(kept: NDArray[np.uint8]) -> Rows:
    return np.ascontiguousarray(kept[..., 0]).view(np.float32)
