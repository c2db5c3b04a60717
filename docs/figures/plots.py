"""Draw clusters-digits.png, confusion-digits.svg and acc-over-time.svg, beside this file, from a session on the digits.

    python main.py --cfgs configs/imc_swav/base.yaml configs/imc_swav/digits.yaml --seed 0 --eval-every 2 \
        --session digits-imc_swav
    python docs/figures/plots.py sessions/digits-imc_swav

`pip install matplotlib` beforehand (`docs` in pyproject.toml).
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib

matplotlib.use("svg")

import numpy as np
from matplotlib import pyplot
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from lib.report import session_files, tensorboard_images
from lib.report.session_files import Found
from lib.scoring import metrics

HERE = Path(__file__).parent
ACROSS = 12  # images of a cluster
SIDE = 48  # px of an image
GAP = 4  # px
MARGIN = 16  # px
LABEL = 190  # px
HEAD = 30  # px
INK = "#1d1d1f"
WRONG = "#c05000"
BACK = "#fbfaf8"
EDGE = "#dfdcd6"
BLUES = LinearSegmentedColormap.from_list("blues", [BACK, "#0072b2", "#003a5c"])

# Key of the scores, name, colour of Okabe and Ito, dashes.
CURVES = (
    ("acc", "ACC (needs labels)", "#0072b2", "solid"),
    ("agreement", "agreement", "#009e73", (0, (6, 2))),
    ("confidence", "confidence", "#d55e00", (0, (4, 1.5, 1, 1.5))),
    ("silhouette", "silhouette", "#a3005c", (0, (2, 1.5))),
    ("pui", "PUI (lower is better)", "#5b5b63", (0, (1, 1))),
)
METHODS = {"pica": "PICA", "imc_swav": "IMC-SwAV"}
STYLE = {
    "figure.facecolor": BACK,
    "axes.facecolor": BACK,
    "axes.edgecolor": "#8a8a90",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "font.size": 11,
    "svg.fonttype": "path",  # looks the same where the font is missing
    "svg.hashsalt": "figures",  # the same bytes each time
}


def matched_first(run: Found) -> list[tuple[int, int]]:
    """(class, cluster) of the best one-to-one matching, by class."""
    return sorted((label, cluster) for cluster, label in metrics.matching(run.label, run.cluster).items())


def clusters(run: Found) -> Image.Image:
    """For each cluster a row of its images, evenly spread from the most confident to the least certain that is shown."""
    assert run.shown is not None
    looks = tensorboard_images.cut_out(run.shown)
    number = {row: n for n, row in enumerate(run.shown.row.tolist())}
    rows = matched_first(run)
    width = 2 * MARGIN + LABEL + ACROSS * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width, 2 * MARGIN + HEAD + len(rows) * (SIDE + GAP) - GAP), BACK)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(17)
    left = MARGIN + LABEL
    pen.text((left, MARGIN), "most confident", fill=INK, font=font, anchor="lt")
    pen.text((width - MARGIN, MARGIN), "least certain", fill=INK, font=font, anchor="rt")
    pen.text(((left + width - MARGIN) / 2, MARGIN), "framed: another digit", fill=WRONG, font=font, anchor="mt")
    for i, (label, cluster) in enumerate(rows):
        top = MARGIN + HEAD + i * (SIDE + GAP)
        own = np.flatnonzero(run.cluster == cluster)
        order = own[np.argsort(-run.confidence[own], kind="stable")]
        share = (run.label[own] == label).mean()
        words = f"cluster {cluster}: {share:.0%} are {run.class_name(label)}s"
        pen.text((MARGIN, top + SIDE / 2), words, fill=INK, font=font, anchor="lm")
        seen = [row for row in order.tolist() if row in number]
        chosen = [seen[round(at)] for at in np.linspace(0, len(seen) - 1, ACROSS)]
        for j, row in enumerate(chosen):
            look = Image.fromarray(looks[number[row]]).resize((SIDE, SIDE), Image.Resampling.NEAREST)
            place = (left + j * (SIDE + GAP), top)
            sheet.paste(look, place)
            if run.label[row] != label:
                pen.rectangle((*place, place[0] + SIDE - 1, top + SIDE - 1), outline=WRONG, width=3)
    return sheet.quantize(64)


def confusion(run: Found) -> Figure:
    """Classes by clusters, matched ones on the diagonal."""
    counts, classes, columns = metrics.contingency(run.label, run.cluster)
    pairs = matched_first(run)
    at = {int(cluster): j for j, cluster in enumerate(columns)}
    table = counts[:, [at[cluster] for _, cluster in pairs]]
    share = table / table.sum(axis=1, keepdims=True)
    figure, axes = pyplot.subplots(figsize=(6.6, 5.6), layout="constrained")
    shades = axes.imshow(share, cmap=BLUES, vmin=0, vmax=1)
    for i, j in zip(*np.nonzero(table), strict=True):
        colour = "white" if share[i, j] > 0.4 else INK
        axes.text(j, i, str(table[i, j]), ha="center", va="center", color=colour, fontsize=10)
    axes.set_xticks(range(len(pairs)), [str(cluster) for _, cluster in pairs])
    axes.set_yticks(range(len(classes)), [run.class_name(int(label)) for label in classes])
    axes.set_xticks(np.arange(0.5, len(pairs) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(classes) - 1), minor=True)
    axes.grid(which="minor", color=EDGE, linewidth=0.8)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("cluster")
    axes.set_ylabel("digit")
    accuracy = np.trace(table) / table.sum()
    method = METHODS[str(run.settings["method"])]
    axes.set_title(f"{method} on {table.sum():,} digits: ACC {accuracy:.3f}", fontsize=12)
    bar = figure.colorbar(shades, ax=axes, shrink=0.85, label="share of the digit's images")
    bar.outline.set_visible(False)
    return figure


def over_time(run: Found) -> Figure:
    """The scores of the first split by epoch, with labels and without."""
    split = next(iter(run.scores))
    lines = [line for line in run.metrics if line["split"] == split]
    figure, axes = pyplot.subplots(figsize=(7.2, 4.2), layout="constrained")
    for key, title, colour, dashes in CURVES:
        points = [(line["epoch"], line[key]) for line in lines if line.get(key) is not None]
        axes.plot(*zip(*points, strict=True), color=colour, linestyle=dashes, label=title, linewidth=2.2)
    axes.set_title(f"{METHODS[str(run.settings['method'])]} on the digits: the {split} images", fontsize=12)
    axes.set_xlabel("epoch")
    axes.set_ylim(min(0, axes.get_ylim()[0]), 1)
    axes.set_xlim(0, max(line["epoch"] for line in lines))
    axes.grid(color=EDGE, linewidth=0.8)
    axes.tick_params(length=0)
    figure.legend(loc="outside right center", frameon=False)
    return figure


def save(figure: Figure, name: str) -> None:
    figure.savefig(HERE / name, metadata={"Date": None})


def main(path: Path) -> None:
    run = session_files.read(path)
    with pyplot.rc_context(STYLE):
        clusters(run).save(HERE / "clusters-digits.png", optimize=True)
        save(confusion(run), "confusion-digits.svg")
        save(over_time(run), "acc-over-time.svg")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("error: name the folder of one session, as in python docs/figures/plots.py sessions/NAME")
    main(Path(sys.argv[1]))
