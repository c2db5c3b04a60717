from __future__ import annotations

import dataclasses
from typing import Any, Literal

import pytest

from lib.config.settings import expanded, setting
from lib.config.typed_values import literal, read

RATES = [["100.", "1e-3"], "(200, 1e-4)"]  # one pair as a list, one as a Python expression


def convert(raw: Any, hint: Any, *, flag: bool = False, **options: Any) -> Any:
    field = dataclasses.make_dataclass("S", [("value", Any, setting(None, "", **options))]).__dataclass_fields__[
        "value"
    ]
    return read(raw, field, hint, flag=flag)


@pytest.mark.parametrize(
    ("raw", "hint", "value"),
    [
        (1e-4, float, 1e-4),
        ("1e-4", float, 1e-4),
        ("3./4.", float, 0.75),
        (3, float, 3.0),
        (70, int, 70),
        ("2*3", int, 6),
        (32.0, int, 32),
        ("64/2", int, 32),
        ("6/2", Literal[1, 3], 3),
        (True, bool, True),
        ("true", bool, True),
        ("False", bool, False),
        ("text", str, "text"),
        (0, str, "0"),
        ("(3./4., 4./3.)", tuple[float, float], (0.75, 4 / 3)),
        ("3./4., 4./3.", tuple[float, float], (0.75, 4 / 3)),
        (["3./4.", "4./3."], tuple[float, float], (0.75, 4 / 3)),
        ([70, 10], tuple[int, ...], (70, 10)),
        ("70, 10", tuple[int, ...], (70, 10)),
        ("[70., 10]", tuple[int, ...], (70, 10)),
        (70, tuple[int, ...], (70,)),
        ("(0.4,)", tuple[float, ...], (0.4,)),
        ("[(100, 1e-3), (200, '-')]", tuple[tuple[int, float | str], ...] | str, ((100, 1e-3), (200, "-"))),
        (RATES, tuple[tuple[int, float | str], ...] | str, ((100, 1e-3), (200, 1e-4))),
        ("(100, 1e-3), (200., 1e-4)", tuple[tuple[int, float | str], ...] | str, ((100, 1e-3), (200, 1e-4))),
        ("(100, 1e-3)", tuple[tuple[int, float | str], ...] | str, ((100, 1e-3),)),
        ("rates.txt", tuple[tuple[int, float | str], ...] | str, "rates.txt"),
        ("(stem|stages)", tuple[str, ...], ("(stem|stages)",)),
        ("('stem', 'stages')", tuple[str, ...], ("stem", "stages")),
        ("0-4", tuple[str, ...], ("0-4",)),
        ("a", tuple[Literal["a", "b"], ...], ("a",)),
        (None, int | None, None),
        ("None", int | None, None),
        ([], tuple[str, ...] | None, None),
        ("b", Literal["a", "b"], "b"),
    ],
)
def test_values_by_declared_type(raw: Any, hint: Any, value: Any) -> None:
    found = convert(raw, hint)
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (2.7, int), ("2.7", int), (True, int), (True, float), ("no", bool), (0, bool), ("fast", float),
        (float("inf"), float), (float("nan"), float), ("1e999", float), (None, float), ([], tuple[int, ...]),
        ((1, 2, 3), tuple[float, float]), ("(1, [2,)", tuple[int, ...]), ("c", Literal["a", "b"]), (True, Literal[1, 3]), (1.5, str),
        ({"a": 1}, tuple[int, ...]), ("1/0", float), ("(" * 500 + ")" * 500, tuple[int, ...]), ("2**99", int),
            ([], str | None), ("[(100, 1e-3), (200, -)]", tuple[tuple[int, float | str], ...] | str),
    ],
)  # fmt: skip
def test_other_types_are_refused(raw: Any, hint: Any) -> None:
    with pytest.raises(ValueError):
        convert(raw, hint)


@pytest.mark.parametrize(("raw", "hint", "value"), [
    (["70", "10"], tuple[int, ...], (70, 10)), (["(70, 10)"], tuple[int, ...], (70, 10)),
    (["0.2", "1"], tuple[float, float], (0.2, 1.0)), (["none"], tuple[int, ...] | None, None),
    ("none", int | None, None), ("False", bool, False), ("true", bool, True), ("5", str, "5"), ("3", Literal[1, 3], 3),
])  # fmt: skip
def test_words_of_the_command_line(raw: Any, hint: Any, value: Any) -> None:
    assert convert(raw, hint, flag=True) == value


@pytest.mark.parametrize("text", ["__import__('os').system('true')", "a", "f'{1}'", "[x for x in (1,)]", "1 if 1 else 2",
                                  "(1).real", "'a' * 9", "True", "{1: 2}", "lambda: 1", "1 + (2, 3)"])  # fmt: skip
def test_nothing_but_literals_is_evaluated(text: str) -> None:
    with pytest.raises(ValueError):
        literal(text)


@pytest.mark.parametrize("raw", [32, "32", 32.0, "(32, 32)", "32, 32", "[32, 64/2]", [32, "32."], ["(32, 32)"]])
def test_a_pair_of_equal_sides_is_one_side(raw: Any) -> None:
    side = convert(raw, int | None, flag=raw == ["(32, 32)"], side=True)
    assert side == 32 and type(side) is int


@pytest.mark.parametrize("raw", ["(32, 40)", [32, 40], "(32, 32, 32)", "(32.5, 32.5)", "()"])
def test_other_sides_are_refused(raw: Any) -> None:
    with pytest.raises(ValueError, match="the sides 32 and 40 differ" if "40" in str(raw) else "not an integer|not a"):
        convert(raw, int | None, side=True)


def test_a_path_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert convert("~/data", str | None, convert=expanded) == "/home/me/data"
    assert convert("./~data", str | None, convert=expanded) == "./~data"
    with pytest.raises(ValueError, match="no home directory"):
        convert("~no-such-user/data", str, convert=expanded)


def test_bounds() -> None:
    assert convert(0, int, low=0) == 0
    with pytest.raises(ValueError, match="below 0"):
        convert(-1, int, low=0)
    with pytest.raises(ValueError, match="above 9"):
        convert("9" * 400, int, high=9)
    with pytest.raises(ValueError, match="above 1"):
        convert([0.5, 2], tuple[float, float], high=1)


@pytest.mark.parametrize(
    ("raw", "hint"),
    [
        (2**31, int),
        ("9" * 23, int | None),
        ([10, 2**31], tuple[int, ...]),
        (f"[({2**31}, 1e-3)]", tuple[tuple[int, float | str], ...] | str),
    ],
)
def test_every_whole_number_has_a_bound(raw: Any, hint: Any) -> None:
    with pytest.raises(ValueError, match="above 2147483647, the most allowed"):
        convert(raw, hint)
    assert convert(2**31 - 1, int) == 2**31 - 1
    assert convert(2**40, int, high=2**41) == 2**40


@pytest.mark.parametrize("hint", [str, str | None, tuple[str, ...], tuple[int, ...] | str])
def test_a_text_with_a_nul_is_refused(hint: Any) -> None:
    with pytest.raises(ValueError, match="NUL"):
        convert("a\0b", hint)


def test_an_empty_path_is_named() -> None:
    with pytest.raises(ValueError, match="an empty value"):
        convert("", str | None, convert=expanded)
