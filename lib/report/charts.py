"""Charts as SVG, which inherits the page's colours."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

Points = Sequence[tuple[float, float]]
WIDTH = 640
HEIGHT = 260  # px of the drawing; the page scales it
_LEFT = 48
_RIGHT = 12
_TOP = 10
_BOTTOM = 30
COLOURS = 8  # of lines, in the style sheet
NAMED = 40  # classes or clusters at most whose names stand beside a table
FIGURES = 20  # classes or clusters at most whose counts stand in a table


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that cover [low, high]."""
    span = high - low or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / count))
    step *= next((factor for factor in (1, 2, 5) if span / (step * factor) <= count), 10)
    first = math.floor(low / step)
    return [(first + i) * step for i in range(max(1, math.ceil(high / step - first - 1e-9)) + 1)]


def lines(title: str, series: Mapping[str, Points], across: str) -> str:
    """Lines over a common axis, with a legend; nothing where there is no point.

    Args:
        title: what is drawn.
        series: name → points (x, y).
        across: what x counts.
    """
    series = {name: points for name, points in series.items() if points}
    if not series:
        return ""
    xs, ys = ([point[axis] for points in series.values() for point in points] for axis in (0, 1))
    marks = ticks(min(ys), max(ys))
    across_marks = ticks(min(xs), max(xs), 6)
    if all(x == int(x) for x in xs):  # what is counted has no halves
        across_marks = [x for x in across_marks if abs(x - round(x)) < 1e-9]
    low = min(marks)
    high = max(marks)
    left = min(xs)
    right = max(xs)

    def at(x: float, y: float) -> tuple[float, float]:
        width = WIDTH - _LEFT - _RIGHT
        height = HEIGHT - _TOP - _BOTTOM
        across_ = (x - left) / ((right - left) or 1)
        up = (y - low) / ((high - low) or 1)
        return round(_LEFT + across_ * width, 1), round(_TOP + (1 - up) * height, 1)

    grid = [
        f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{at(left, y)[1]}" y2="{at(left, y)[1]}"/>'
        f'<text x="{_LEFT - 6}" y="{at(left, y)[1] + 4}" text-anchor="end">{y:.4g}</text>'
        for y in marks
    ]
    grid += [
        f'<text x="{at(x, low)[0]}" y="{HEIGHT - 10}" text-anchor="middle">{x:.4g}</text>'
        for x in across_marks
        if left <= x <= right
    ]
    drawn = []
    legend = []
    for number, (name, points) in enumerate(series.items()):
        colour = f"s{number % COLOURS}"
        path = " ".join(f"{x},{y}" for x, y in (at(*point) for point in points))
        drawn.append(f'<polyline class="{colour}" points="{path}"/>')
        if len(points) <= 200:
            drawn += [
                f'<circle class="{colour}" cx="{at(x, y)[0]}" cy="{at(x, y)[1]}" r="3">'
                f"<title>{escape(name)}: {y:.4g} ({escape(across)} {x:.4g})</title></circle>"
                for x, y in points
            ]
        legend.append(f'<li class="{colour}">{escape(name)} <b>{points[-1][1]:.4g}</b></li>')
    key = f'<ul class="legend">{"".join(legend)}</ul>' if len(series) > 1 else ""
    told = "; ".join(
        f"{name} from {points[0][1]:.4g} to {points[-1][1]:.4g}" for name, points in series.items()
    )  # for those who do not see it
    return (
        f"<figure><figcaption>{escape(title)}, by {escape(across)}</figcaption>{key}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}, by {escape(across)}: {escape(told)}">'
        f"{''.join(grid)}{''.join(drawn)}</svg></figure>"
    )


def confusion(table: NDArray[np.int64], rows: Sequence[str], columns: Sequence[str]) -> str:
    """Counts by class (rows) and cluster (columns), each shaded by its share of the class.

    Args:
        table: (C, K) counts.
        rows, columns: the names.
    """
    count, wide = table.shape
    side = max(6, min(34, 760 // max(count, wide)))
    named = max(count, wide) <= NAMED
    left, top = (130, 26) if named else (4, 4)
    width = left + wide * side + 4
    height = top + count * side + 4
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    cells = []
    for i, j in zip(*np.nonzero(table), strict=True):
        x = left + j * side
        y = top + i * side
        part = share[i, j]
        cells.append(
            f'<rect x="{x}" y="{y}" width="{side - 1}" height="{side - 1}" style="--share:{part:.3f}">'
            f"<title>{escape(rows[i])} in {escape(columns[j])}: {table[i, j]:,} ({part:.1%})</title></rect>"
        )
        if max(count, wide) <= FIGURES:
            strong = ' class="strong"' if part > 0.5 else ""
            cells.append(f'<text x="{x + side / 2}" y="{y + side / 2 + 4}"{strong}>{table[i, j]}</text>')
    if named:
        cells += [
            f'<text class="row" x="{left - 6}" y="{top + (i + 0.5) * side + 4}">{escape(_short(name))}</text>'
            for i, name in enumerate(rows)
        ]
        cells += [
            f'<text class="column" x="{left + (j + 0.5) * side}" y="{top - 8}">{escape(name.removeprefix("cluster "))}</text>'
            for j, name in enumerate(columns)
        ]
    agreed = np.trace(table) / max(table.sum(), 1)
    return (
        f'<div class="wide"><svg class="confusion" width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{count} classes by {wide} clusters, ordered so that matched ones lie on the diagonal, which holds '
        f'{agreed:.1%} of the images">{"".join(cells)}</svg></div>'
    )


def _short(name: str, most: int = 18) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def bar(share: float, largest: float) -> str:
    """A bar for a share of all images, the largest one being full."""
    return f'<span class="bar" style="--share:{share / max(largest, 1e-12):.4f}"></span>'
