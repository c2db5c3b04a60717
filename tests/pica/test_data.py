from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import torch

from lib.contracts import Prepared, Recipe, Request
from pica.data import PICASource

ORIGINAL = Recipe(4, "random", 5)
PERTURBED = Recipe(4, "resized", flip=0.5)


class Recorder:
    """Views that hand back each picture's position, and the copy, as its pixels."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def stream(self, plan: Iterable[Request]) -> Iterator[Prepared]:
        for request in plan:
            self.requests.append(request)
            views = [(request.index * 10 + copy).view(-1, 1, 1, 1) for copy in range(len(request.recipes))]
            yield Prepared(request.index, views)


def source(views: Recorder, seed: int = 3) -> PICASource:
    sets = [np.arange(10), np.arange(4, 9)]
    return PICASource(views, sets, (ORIGINAL, *[PERTURBED] * 3), batch_size=4, seed=seed)  # type: ignore[arg-type]


def test_an_epoch_is_a_pass_over_each_heads_set_in_turn() -> None:
    views = Recorder()
    made = source(views)
    batches = list(made.epoch(0))
    assert [batch.head for batch in batches] == [0, 0, 0, 1, 1]
    assert len(made) == 5
    assert [len(batch.index) for batch in batches] == [4, 4, 2, 4, 1]  # the last batch is not dropped
    seen = torch.cat([request.index for request in views.requests])
    assert sorted(seen[:10].tolist()) == list(range(10)) and sorted(seen[10:].tolist()) == list(range(4, 9))
    assert views.requests[0].recipes == (ORIGINAL, PERTURBED, PERTURBED, PERTURBED)


def test_perturbed_copies_come_in_the_order_of_the_originals() -> None:
    batch = next(source(Recorder()).epoch(0))
    original, *perturbed = batch.views
    for copy, view in enumerate(perturbed, start=1):
        assert torch.equal(view, original + copy)


def test_order_and_draws_are_fresh_for_each_head_and_epoch_and_known_from_the_seed() -> None:
    def orders(seed: int, epoch: int) -> list[tuple[list[int], int]]:
        views = Recorder()
        list(source(views, seed).epoch(epoch))
        return [(request.index.tolist(), request.epoch) for request in views.requests]

    assert orders(3, 1) == orders(3, 1)
    assert orders(3, 0) != orders(3, 1) and orders(3, 0) != orders(4, 0)
    keys = {key for epoch in range(3) for _, key in orders(3, epoch)}
    assert len(keys) == 6  # 3 epochs of 2 heads


def test_starting_in_the_middle_gives_the_rest_of_the_epoch() -> None:
    whole = [batch.views[0].flatten().tolist() for batch in source(Recorder()).epoch(2)]
    for start in range(6):
        rest = [batch.views[0].flatten().tolist() for batch in source(Recorder()).epoch(2, start)]
        assert rest == whole[start:]


def test_a_blank_batch_has_the_shape_of_a_full_one() -> None:
    blank = source(Recorder()).blank(lambda recipe, n: torch.empty(n, 1, recipe.size, recipe.size, device="meta"))
    assert [view.shape for view in blank.views] == [(4, 1, 4, 4)] * 4
