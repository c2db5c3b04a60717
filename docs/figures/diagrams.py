"""Draw the two methods, from image to loss: pica.svg and imc_swav.svg, beside this file.

    python docs/figures/diagrams.py

It needs no session, and writes the same bytes each time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path

HERE = Path(__file__).parent
WIDTH = 960  # px of the drawing; a page shows it at 800 px or more
FONT = "-apple-system, 'Segoe UI', Roboto, Helvetica, Arial, 'Liberation Sans', 'DejaVu Sans', sans-serif"
SIZE = 16  # px
SMALL = 14.5  # px
RAISED = 16  # px, by which both drawings are moved up

# The colours of Okabe and Ito, which colour-blind readers tell apart, and tints of them.
INK = "#1d1d1f"
LINE = "#55565e"
BACK = "#fbfaf8"
EDGE = "#dfdcd6"
WHITE = "#ffffff"
BLUE = "#0072b2"
BLUE_TINT = "#e2f0f9"
ORANGE = "#b35900"
ORANGE_TINT = "#fcecd9"
GREY_TINT = "#eeedea"
BLOCKED = "#a3005c"

# Sky, sun, sea, hull and sail of the image that stands for any image.
NATURAL = ("#bfe3f7", "#f6c945", "#3f8fc4", "#8a4b2d", "#ffffff")
WARM = ("#f7dcc0", "#f4a63a", "#8f7fb8", "#6d3b3b", "#fff3e0")
COOL = ("#c4f0df", "#d9e05a", "#2b7f8f", "#5f4a52", "#effff9")
GREY = ("#d9d9d9", "#c2c2c2", "#8a8a8a", "#5c5c5c", "#fafafa")

# Assignments of six images to four clusters in a plain and a changed view: an example.
ORIGINAL = (
    (0.90, 0.04, 0.03, 0.03),
    (0.05, 0.85, 0.05, 0.05),
    (0.03, 0.03, 0.06, 0.88),
    (0.80, 0.08, 0.06, 0.06),
    (0.04, 0.06, 0.84, 0.06),
    (0.10, 0.62, 0.20, 0.08),
)
PERTURBED = (
    (0.84, 0.06, 0.05, 0.05),
    (0.06, 0.78, 0.10, 0.06),
    (0.04, 0.06, 0.08, 0.82),
    (0.66, 0.16, 0.10, 0.08),
    (0.05, 0.15, 0.74, 0.06),
    (0.10, 0.50, 0.32, 0.08),
)

Matrix = Sequence[Sequence[float]]


def number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")


def spans(markup: str) -> str:
    """`*x*` is slanted, `_{i}` is lowered, `**x**` is bold."""
    content = []
    lowered = False
    for part in re.split(r"(\*\*.+?\*\*|\*.+?\*|_\{.+?\})", markup):
        if not part:
            continue
        shift = ' dy="-4"' if lowered else ""
        lowered = part.startswith("_{")
        if lowered:
            content.append(f'<tspan dy="4" font-size="75%">{escape(part[2:-1])}</tspan>')
        elif part.startswith("**"):
            content.append(f'<tspan{shift} font-weight="600">{escape(part[2:-2])}</tspan>')
        elif part.startswith("*"):
            content.append(f'<tspan{shift} font-style="italic">{escape(part[1:-1])}</tspan>')
        else:
            content.append(f"<tspan{shift}>{escape(part)}</tspan>")
    return "".join(content)


def text(x: float, y: float, markup: str, *, anchor: str = "middle", size: float = SIZE, colour: str = INK) -> str:
    """A line whose baseline is at y."""
    return (
        f'<text x="{number(x)}" y="{number(y)}" text-anchor="{anchor}" font-size="{number(size)}" fill="{colour}">'
        f"{spans(markup)}</text>"
    )


def box(
    left: float, top: float, width: float, height: float, lines: Sequence[str], *, fill: str, edge: str, dash: str = ""
) -> str:
    """A box with centred lines; those in bold are larger."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    parts = [
        f'<rect x="{number(left)}" y="{number(top)}" width="{number(width)}" height="{number(height)}" rx="8" '
        f'fill="{fill}" stroke="{edge}" stroke-width="1.6"{dashes}/>'
    ]
    first = top + height / 2 - (len(lines) - 1) * 10 + 5
    for i, line in enumerate(lines):
        parts.append(text(left + width / 2, first + i * 20, line, size=SIZE if line.startswith("**") else SMALL))
    return "".join(parts)


def arrow(*points: tuple[float, float], colour: str = LINE, dashed: bool = False) -> str:
    """Along the points; its head is at the last."""
    (x0, y0), (x1, y1) = points[-2:]
    length = math.hypot(x1 - x0, y1 - y0)
    dx = (x1 - x0) / length
    dy = (y1 - y0) / length
    head = [
        (x1, y1),
        (x1 - 9 * dx - 5 * dy, y1 - 9 * dy + 5 * dx),
        (x1 - 9 * dx + 5 * dy, y1 - 9 * dy - 5 * dx),
    ]
    body = [*points[:-1], (x1 - 6 * dx, y1 - 6 * dy)]
    path, tip = (" ".join(f"{number(x)},{number(y)}" for x, y in line) for line in (body, head))
    dashes = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" stroke-linejoin="round"{dashes}/>'
        f'<polygon points="{tip}" fill="{colour}"/>'
    )


def barrier(x: float, y: float, *, upright: bool = True) -> str:
    """Two bars across an arrow that no gradient passes, upright for an arrow to the right."""
    bars = []
    for shift in (-3.5, 3.5):
        ends = (x + shift, y - 10, x + shift, y + 10) if upright else (x - 10, y + shift, x + 10, y + shift)
        x0, y0, x1, y1 = map(number, ends)
        bars.append(f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{BLOCKED}" stroke-width="3"/>')
    return "".join(bars)


def sailboat(
    left: float,
    top: float,
    side: float,
    colours: Sequence[str] = NATURAL,
    crop: tuple[float, float, float] = (0, 0, 64),
    flipped: bool = False,
) -> str:
    """A square image; `crop` is left, top and side of the part that is seen, of 64."""
    sky, sun, sea, hull, sail = colours
    turn = ' transform="translate(64 0) scale(-1 1)"' if flipped else ""
    x, y, length = crop
    return (
        f'<svg x="{number(left)}" y="{number(top)}" width="{number(side)}" height="{number(side)}" '
        f'viewBox="{number(x)} {number(y)} {number(length)} {number(length)}"><g{turn}>'
        f'<rect width="64" height="64" fill="{sky}"/><circle cx="51" cy="13" r="7" fill="{sun}"/>'
        f'<rect y="44" width="64" height="20" fill="{sea}"/><path d="M14 44 h36 l-7 9 h-22 z" fill="{hull}"/>'
        f'<path d="M31 8 v33 h-15 z" fill="{sail}"/><path d="M34 14 v27 h13 z" fill="{sail}"/></g></svg>'
        f'<rect x="{number(left)}" y="{number(top)}" width="{number(side)}" height="{number(side)}" fill="none" '
        f'stroke="{LINE}" stroke-width="1"/>'
    )


def grid(left: float, top: float, cell: float, matrix: Matrix, colour: str) -> str:
    """A matrix of numbers in [0, 1], the darker the larger."""
    cells = "".join(
        f'<rect x="{number(left + j * cell)}" y="{number(top + i * cell)}" width="{number(cell)}" '
        f'height="{number(cell)}" fill="{colour}" fill-opacity="{number(0.04 + 0.96 * value)}" stroke="{EDGE}"/>'
        for i, row in enumerate(matrix)
        for j, value in enumerate(row)
    )
    frame = (
        f'<rect x="{number(left)}" y="{number(top)}" width="{number(cell * len(matrix[0]))}" '
        f'height="{number(cell * len(matrix))}" fill="none" stroke="{LINE}" stroke-width="1.2"/>'
    )
    background = frame.replace('fill="none"', f'fill="{WHITE}"')
    return background + cells + frame


def bars(left: float, base: float, width: float, heights: Sequence[float], colour: str) -> str:
    """Bars on a line at y = `base`."""
    step = width / len(heights)
    drawn = "".join(
        f'<rect x="{number(left + i * step + 2)}" y="{number(base - height)}" width="{number(step - 4)}" '
        f'height="{number(height)}" fill="{colour}"/>'
        for i, height in enumerate(heights)
    )
    return f'{drawn}<line x1="{number(left)}" y1="{number(base)}" x2="{number(left + width)}" y2="{number(base)}" stroke="{LINE}"/>'


def cosines(first: Matrix, second: Matrix) -> list[list[float]]:
    """Of each column of the one with each column of the other: the partition uncertainty index."""
    one, two = ([[row[j] for row in matrix] for j in range(len(matrix[0]))] for matrix in (first, second))
    return [[sum(map(math.prod, zip(a, b, strict=True))) / (math.hypot(*a) * math.hypot(*b)) for b in two] for a in one]


def drawing(height: int, title: str, description: str, parts: Sequence[str]) -> str:
    """A whole file; it has its own light background, so that dark pages can show it."""
    content = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        f'role="img" aria-labelledby="title description" font-family="{FONT}">\n'
        f'<title id="title">{escape(title)}</title>\n<desc id="description">{escape(description)}</desc>\n'
        f'<rect x="0.5" y="0.5" width="{WIDTH - 1}" height="{height - 1}" rx="12" fill="{BACK}" stroke="{EDGE}"/>\n'
        f'<g transform="translate(0 {-RAISED})">\n{content}\n</g>\n</svg>\n'
    )


def pica() -> str:
    """Huang, Gong, Zhu, CVPR 2020: one network, heads in turn, and a loss of whole columns of assignments."""
    blue = {"fill": BLUE_TINT, "edge": BLUE}
    loss = {"fill": ORANGE_TINT, "edge": ORANGE}
    mass = [sum(row[k] for row in ORIGINAL) / len(ORIGINAL) for k in range(len(ORIGINAL[0]))]
    parts = [
        sailboat(20, 174, 72),
        text(56, 268, "*N* images"),
        arrow((98, 196), (136, 120)),
        arrow((98, 226), (136, 292)),
        # Views
        text(169, 62, "original view"),
        sailboat(141, 78, 56, crop=(3, 4, 56)),
        text(169, 196, "3 perturbed"),
        text(169, 214, "copies"),
        sailboat(144, 222, 50, WARM, crop=(10, 4, 46)),
        sailboat(144, 276, 50, GREY, crop=(2, 12, 50)),
        sailboat(144, 330, 50, COOL, crop=(4, 0, 58), flipped=True),
        arrow((204, 106), (248, 106)),
        arrow((204, 301), (248, 301)),
        # Network
        box(252, 48, 132, 340, ["**network**", "ResNet-34,", "the same for", "both views;", "features *f*"], **blue),
        box(264, 62, 108, 54, ["**Sobel filter**", "edges, fixed"], fill=GREY_TINT, edge=LINE, dash="5 4"),
        arrow((384, 106), (426, 106)),
        text(406, 94, "*f*"),
        arrow((384, 301), (426, 301)),
        text(406, 289, "*f*"),
        # Heads
        box(430, 48, 148, 340, [], fill=WHITE, edge=LINE),
        text(504, 76, "**heads**"),
        box(434, 130, 140, 58, ["**over-clustering**", "70 clusters"], **blue),
        box(434, 200, 140, 58, ["**main head**", "10 clusters"], **blue),
        text(504, 340, "one head learns", size=SMALL),
        text(504, 360, "at a time", size=SMALL),
        arrow((578, 106), (620, 106)),
        arrow((578, 301), (620, 301)),
        # Assignments
        text(652, 54, "assignments *p*"),
        grid(624, 64, 14, ORIGINAL, BLUE),
        text(652, 249, "assignments *q*"),
        grid(624, 259, 14, PERTURBED, BLUE),
        text(652, 363, "images by", size=SMALL),
        text(652, 382, "clusters", size=SMALL),
        # Loss
        arrow((680, 106), (712, 106)),
        bars(716, 128, 60, [150 * share for share in mass], BLUE),
        text(746, 150, "means *m*", size=SMALL),
        arrow((776, 106), (800, 106)),
        box(804, 70, 138, 72, ["**balance**", "*L*_{b} = log *K* − *H*(*m*)"], **loss),
        arrow((652, 148), (652, 202), (746, 202), (746, 267)),
        text(662, 193, "repeated", anchor="start", size=SMALL),
        arrow((680, 301), (712, 301)),
        grid(716, 271, 15, cosines(ORIGINAL, PERTURBED), BLUE),
        text(754, 252, "**PUI** *M*", anchor="start", size=SMALL),
        text(750, 363, "cosines of", size=SMALL),
        text(750, 382, "columns", size=SMALL),
        arrow((776, 301), (800, 301)),
        box(804, 259, 138, 84, ["**uncertainty**", "*L*_{u}: row *j* of *M*", "has to choose *j*"], **loss),
        arrow((873, 142), (873, 170)),
        arrow((873, 259), (873, 230)),
        box(804, 174, 138, 52, ["**loss**", "*L* = *L*_{u} + *λ* *L*_{b}"], fill=WHITE, edge=ORANGE),
        # What learns
        swatch(24, 414, BLUE_TINT, BLUE),
        text(52, 426, "learns: gradients flow back through *p* and *q*", anchor="start", size=SMALL),
        swatch(432, 414, GREY_TINT, LINE, dash="4 3"),
        text(460, 426, "fixed", anchor="start", size=SMALL),
        text(942, 426, "Result: the main head's most probable cluster", anchor="end", size=SMALL),
    ]
    return drawing(
        432,
        "How PICA learns",
        "Images become an original view and three perturbed copies. One network and one head at a time turn both into "
        "assignments p and q. The cosines of their columns are the partition uncertainty index, whose rows have to choose "
        "the diagonal; the mean of p has to be even.",
        parts,
    )


def swatch(left: float, top: float, fill: str, edge: str, dash: str = "") -> str:
    return box(left, top, 20, 16, [], fill=fill, edge=edge, dash=dash).replace('rx="8"', 'rx="3"')


def imc_swav() -> str:
    """Ntelemis, Jin, Thomas, 2021: prototypes teach the encoder, and a classifier keeps what they tell."""
    blue = {"fill": BLUE_TINT, "edge": BLUE}
    orange = {"fill": ORANGE_TINT, "edge": ORANGE}
    joint = [[(0.85 if j // 2 == i else 0.08) * (1 - 0.25 * ((i + j) % 2)) for j in range(8)] for i in range(4)]
    parts = [
        sailboat(18, 174, 60),
        text(48, 254, "*N* images"),
        arrow((82, 190), (106, 146)),
        arrow((82, 218), (106, 264)),
        # Views
        text(149, 58, "2 large crops"),
        sailboat(121, 70, 56, WARM, crop=(4, 2, 54)),
        sailboat(121, 132, 56, crop=(8, 6, 54), flipped=True),
        text(149, 226, "4 small crops"),
        sailboat(110, 238, 36, COOL, crop=(12, 6, 28)),
        sailboat(152, 238, 36, crop=(34, 2, 26)),
        sailboat(110, 280, 36, GREY, crop=(16, 24, 32)),
        sailboat(152, 280, 36, WARM, crop=(24, 12, 30), flipped=True),
        arrow((192, 136), (212, 136)),
        arrow((192, 277), (212, 277)),
        # Features, prototypes
        box(216, 56, 100, 324, ["**encoder**", "ResNet-18,", "each view", "by itself"], **blue),
        arrow((316, 140), (346, 140)),
        text(330, 128, "*f*"),
        box(350, 96, 100, 88, ["**projection**", "2 linear", "layers"], **blue),
        arrow((450, 140), (474, 140)),
        box(478, 96, 104, 88, ["**prototypes**", "1,000 vectors", "*u*: cosines"], **blue),
        arrow((582, 140), (600, 140), (600, 104), (620, 104)),
        arrow((582, 140), (600, 140), (600, 180), (620, 180)),
        box(624, 70, 124, 68, ["**Sinkhorn**", "assignments *q*", "of large views"], fill=GREY_TINT, edge=LINE),
        box(624, 152, 124, 56, ["softmax(*u* / *τ*)", "of all views"], fill=GREY_TINT, edge=LINE),
        arrow((748, 104), (784, 104)),
        barrier(763, 104),
        arrow((748, 180), (784, 180)),
        box(
            788,
            84,
            156,
            116,
            ["**swapped**", "**prediction** *L*_{s}", "each view predicts *q*", "of other large views"],
            **blue,
        ),
        # Clusters
        arrow((316, 336), (346, 336)),
        barrier(327, 336),
        box(350, 300, 100, 72, ["**classifier**", "2 hidden", "layers"], **orange),
        arrow((450, 336), (474, 336)),
        box(478, 300, 104, 72, ["softmax(*y*)", "*K* clusters"], fill=GREY_TINT, edge=LINE),
        arrow((582, 336), (626, 336)),
        arrow((686, 208), (686, 304)),
        barrier(686, 250, upright=False),
        grid(630, 308, 14, joint, ORANGE),
        text(686, 384, "joint *J*: clusters", size=SMALL),
        text(686, 402, "by prototypes", size=SMALL),
        arrow((742, 336), (784, 336)),
        box(788, 290, 156, 92, ["**mutual**", "**information** *L*_{mi}", "*H*(*Y*|*U*) − 4 *H*(*Y*)"], **orange),
        arrow((400, 372), (400, 436), (784, 436)),
        text(410, 428, "logits *y*", anchor="start", size=SMALL),
        box(788, 410, 156, 52, ["**large logits**", "*L*_{r}: beyond ±5"], **orange),
        text(866, 252, "**+**", size=20),
        text(866, 402, "**+**", size=20),
        text(866, 482, "**=**", size=20),
        box(788, 490, 156, 36, ["**loss** *L*"], fill=WHITE, edge=LINE),
        # What learns
        swatch(24, 424, BLUE_TINT, BLUE),
        text(52, 437, "learns from the swapped prediction", anchor="start", size=SMALL),
        swatch(24, 456, ORANGE_TINT, ORANGE),
        text(52, 469, "learns from mutual information", anchor="start", size=SMALL),
        barrier(34, 500),
        text(52, 505, "no gradient flows back", anchor="start", size=SMALL),
        text(420, 505, "Result: the classifier's most probable cluster", anchor="start", size=SMALL),
    ]
    return drawing(
        526,
        "How IMC-SwAV learns",
        "Images become two large and four small crops. An encoder, a projection and prototypes learn as each view predicts "
        "the Sinkhorn assignments of the other large views. A classifier, whose gradient does not reach the encoder, "
        "maximises the mutual information of its clusters and the prototypes.",
        parts,
    )


DRAWN = {"pica.svg": pica, "imc_swav.svg": imc_swav}

if __name__ == "__main__":
    for name, draw in DRAWN.items():
        (HERE / name).write_text(draw(), encoding="utf-8")
