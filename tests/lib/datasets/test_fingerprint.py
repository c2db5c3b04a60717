"""Whether a resumed run has the images that it began with, and trains on the same of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from lib.datasets import Pictures
from lib.datasets.fingerprint import Fingerprint, fingerprint
from lib.errors import UserError


class Part(list[tuple[Any, int]]):
    """A split of images that are never looked at."""

    def __init__(self, size: int) -> None:
        super().__init__([(None, 0)] * size)
        self.targets = [0] * size


def trained(*train: str) -> str | None:
    return fingerprint(Pictures({"a": Part(3), "b": Part(2)}, train), ".").trained


def test_the_images_that_are_trained_on_tell_two_runs_apart() -> None:
    expressions = [("a",), ("b",), ("a+b",), ("b+a",), ("a", "b"), ("b", "a"), ("a+b", "a")]
    assert len({trained(*train) for train in expressions}) == len(expressions)


def test_the_last_head_s_images_are_those_of_all_further_heads() -> None:
    assert trained("a", "a") == trained("a") and trained("b", "a", "a") == trained("b", "a")
    assert trained("a", "b", "a") != trained("a", "b")


EARLIER = Fingerprint("pictures", torch.zeros(2, dtype=torch.int64), "trained")
OTHER_IMAGES = "the pictures are not those"
OTHER_TRAINING = "the training images are not those"


@pytest.mark.parametrize(
    ("now", "same_splits", "message"),
    [
        ({}, True, None),
        ({}, False, None),  # the splits have other names, and the same images
        ({"trained": "other"}, True, OTHER_TRAINING),
        ({"trained": "other"}, False, OTHER_TRAINING),
        ({"pictures": "other"}, True, OTHER_IMAGES),
        ({"pictures": "other"}, False, OTHER_IMAGES),
        ({"pictures": "other", "trained": "other"}, True, OTHER_IMAGES),  # as where an image was removed
        ({"pictures": "other", "trained": "other"}, False, OTHER_TRAINING),
        ({"stamps": torch.zeros(3, dtype=torch.int64), "trained": "other"}, True, OTHER_IMAGES),
    ],
)
def test_other_images_are_an_error(now: dict[str, Any], same_splits: bool, message: str | None) -> None:
    present = replace(EARLIER, **now)
    if message is None:
        assert len(present.changed(EARLIER, same_splits)) == 0
        return
    with pytest.raises(UserError, match=message):
        present.changed(EARLIER, same_splits)


def test_of_an_older_checkpoint_the_names_of_the_splits_count() -> None:
    older = replace(EARLIER, trained=None)
    assert len(EARLIER.changed(older, same_splits=True)) == 0
    with pytest.raises(UserError, match=OTHER_TRAINING):
        EARLIER.changed(older, same_splits=False)


def test_images_that_were_written_since_are_named() -> None:
    written = replace(EARLIER, stamps=torch.tensor([0, 5]))
    assert written.changed(EARLIER, same_splits=True).tolist() == [1]
