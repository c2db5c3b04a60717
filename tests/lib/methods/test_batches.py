"""What becomes of requests, also where views are prepared ahead in a thread."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from lib.contracts import Prepared, Request
from lib.methods import batches


class Ahead:
    """Takes the next request in a thread, before the views of the one before are used; image 0 cannot be read."""

    kind = "ahead"
    skipped: dict[int, str] = {}

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        requests = iter(plan)
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(next, requests, None)
            while (request := coming.result()) is not None:
                coming = pool.submit(next, requests, None)
                coming.result()
                index = request.index[request.index > 0]
                yield Prepared(index, [index.float()])

    def plain(self, batches: Iterable[Tensor]) -> Iterator[Prepared]:
        return self.stream(Request(index, ()) for index in batches)

    def prepared(self) -> Ahead:
        return self

    def describe(self) -> str:
        return self.kind

    def close(self) -> None:
        pass


def test_each_batch_knows_its_own_request() -> None:
    sizes = [4, 1, 3, 0, 2]
    made = list(batches.stream(Ahead(), (Request(torch.arange(size), ()) for size in sizes)))
    assert [batch.index.tolist() for batch in made] == [list(range(1, size)) for size in sizes]
    assert [batch.left_out for batch in made] == [1, 1, 1, 0, 1]
    assert [batch.counts for batch in made] == [(3,), (0,), (2,), (0,), (1,)]
