"""Tables of text."""

from __future__ import annotations

from collections.abc import Sequence


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Columns as wide as their widest cell."""
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    shown = ("  ".join(f"{cell:<{width}}" for cell, width in zip(line, wide, strict=True)) for line in lines)
    return "\n".join(line.rstrip() for line in shown)


def spread(value: float | None, deviation: float | None) -> str:
    """`0.123`, with a deviation `0.123 ± 0.045`; – where there is no number."""
    if value is None:
        return "–"
    return f"{value:.3f}" if deviation is None else f"{value:.3f} ± {deviation:.3f}"
