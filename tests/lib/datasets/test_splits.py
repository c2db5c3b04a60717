"""What `splits(root)` of a user's data set may give."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from conftest import QUICK

from lib import datasets
from lib.datasets import Splits
from lib.datasets.digits import Digits

Cli = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"train": 899}, r"gives a dict; let it give lib\.datasets\.Splits\("),
        (None, "gives a NoneType"),
        (Splits(["train"], ("train",), ("test",)), r"sizes is \['train'\]; give the number"),  # type: ignore[arg-type]
        (Splits({"train": "many"}, ("train",), ("test",)), "sizes is .*; give the number"),  # type: ignore[dict-item]
        (Splits({"train": 899}, "train", ("test",)), "train is 'train'; give a tuple of names"),  # type: ignore[arg-type]
        (Splits({"train": 899}, ("train",), ()), r"test is \(\); give a tuple of names"),
    ],
)
def test_wrong_splits_end_in_one_line(given: Any, message: str, cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    class Mine(Digits):
        @staticmethod
        def splits(root: str) -> Any:
            return given

    monkeypatch.setitem(datasets._registry._components, "mine", Mine)
    status, _, err = cli(*QUICK, "--dataset", "mine", "--debug")
    assert (
        status == 2 and err.count("\n") == 1 and re.search(f"error: `splits` of the data set mine.*{message}", err)
    ), err
