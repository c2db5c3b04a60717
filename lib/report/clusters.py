"""The clusters of a run, and the images that show what each of them holds."""

from __future__ import annotations

import base64
import json
from html import escape
from itertools import takewhile

import numpy as np
from numpy.typing import NDArray

from lib.datasets.folder_tree import counted
from lib.report import charts, thumbnails
from lib.report.session_files import Found, Shown
from lib.scoring import metrics

NEIGHBOURS = 8  # of each image
BLOCK = 256  # images that are compared with all others at a time
NEAR = 3  # clusters that are named beside each cluster
STRIP = 8  # images beside each cluster in the table of all


def colour(cluster: int) -> str:
    """Hues far apart, by the golden angle; lightness in three steps, so that many clusters differ."""
    return f"hsl({cluster * 137.508 % 360:.0f} 62% {(46, 58, 36)[cluster % 3]}%)"


def clean(text: str) -> str:
    """Without what UTF-8 does not have: half a surrogate, as for a file name in another encoding."""
    return text.encode("utf-8", errors="backslashreplace").decode()


class Gallery:
    """The images that a report shows.

    Args:
        found: of a session that has them.
    """

    def __init__(self, found: Found) -> None:
        assert found.shown is not None
        self._found = found
        self._shown = found.shown
        self.row = found.shown.row
        self.cluster = found.cluster[self.row]
        self.confidence = found.confidence[self.row]
        self.number = {int(row): n for n, row in enumerate(self.row)}
        self.columns = thumbnails.columns(len(self.row))

    @property
    def scope(self) -> str:
        """Which images these are."""
        if len(self.row) == len(self._found.cluster):
            return "All images."
        return f"{len(self.row):,} of the {len(self._found.cluster):,} images (--eval-sample); predictions.csv has all."

    @property
    def style(self) -> str:
        """What shows a thumbnail: all lie on one sheet."""
        sheet = base64.b64encode(self._shown.sprite).decode()
        return (
            f".t{{background-image:url(data:image/jpeg;base64,{sheet})}}:root{{--columns:{self.columns};"
            f"--rendering:{'pixelated' if self._shown.pixelated else 'auto'}}}"
        )

    def thumb(self, n: int, caption: str = "") -> str:
        """A button with image n of those that are shown."""
        name = clean(self._found.names[self.row[n]])
        told = f"{name}, cluster {self.cluster[n]}, confidence {self.confidence[n]:.0%}"
        return (
            f'<button class="t" data-n="{n}" style="--x:{n % self.columns};--y:{n // self.columns}" '
            f'title="{escape(name)}" aria-label="{escape(told)}"><span>{escape(caption)}</span></button>'
        )

    def strip(self, k: int, chosen: list[int]) -> str:
        """A link to cluster k that shows the images `chosen`, by their numbers among those that are shown."""
        thumbs = "".join(
            f'<span class="t" style="--x:{n % self.columns};--y:{n // self.columns}"></span>' for n in chosen
        )
        return f'<a class="strip" href="#c{k}" aria-label="Images of cluster {k}">{thumbs}</a>' if chosen else ""

    @property
    def chips(self) -> str:
        every = '<button data-cluster="-1" aria-pressed="true">all</button>'
        return every + "".join(
            f'<button data-cluster="{k}" aria-pressed="false"><i style="background:{colour(k)}"></i>{k}</button>'
            for k in range(self._found.k)
        )

    @property
    def dialog(self) -> str:
        return (
            '<dialog id="picture" aria-labelledby="picture-name"><form method="dialog"><button aria-label="Close">×</button></form>'
            '<div class="head"><div class="t large" id="picture-look"></div><div><h3 id="picture-name"></h3>'
            '<p id="picture-told"></p></div></div><h4>Nearest in the features</h4><div id="picture-near" class="thumbs"></div>'
            "</dialog>"
        )

    @property
    def neighbours(self) -> NDArray[np.int64]:
        """(n, NEIGHBOURS) of each image, the nearest first."""
        feature = self._shown.feature
        count = min(NEIGHBOURS, len(feature) - 1)
        nearest = np.empty((len(feature), count), dtype=np.int64)
        for start in range(0, len(feature), BLOCK):
            likeness = feature[start : start + BLOCK] @ feature.T
            own = np.arange(len(likeness))
            likeness[own, start + own] = -np.inf
            nearest[start : start + BLOCK] = np.argsort(-likeness, axis=1, kind="stable")[:, :count]
        return nearest

    @property
    def data(self) -> str:
        """What the script needs, as JSON that can stand in a page: no `<`, no letter beyond ASCII."""
        found = self._found
        rows = self.row.tolist()
        second = np.argsort(-found.probability[self.row], axis=1, kind="stable")[:, 1]
        content = {
            "columns": self.columns,
            "names": [found.names[row] for row in rows],
            "cluster": self.cluster.tolist(),
            "confidence": [round(float(value), 3) for value in self.confidence],
            "second": second.tolist(),
            "label": [found.class_name(int(found.label[row])) if found.label[row] >= 0 else None for row in rows],
            "place": np.round(self._shown.place.astype(float), 4).tolist(),
            "near": self.neighbours.tolist(),
            "colours": [colour(k) for k in range(found.k)],
        }
        text = json.dumps(content, ensure_ascii=True, separators=(",", ":")).replace("<", "\\u003c")
        return f'<script type="application/json" id="data">{text}</script>'


def near_clusters(found: Found, shown: Shown) -> dict[int, list[tuple[int, float]]]:
    """For each cluster with images, those whose mean features point most alike, with the cosine."""
    cluster = found.cluster[shown.row]
    held = np.unique(cluster)
    means = np.stack([shown.feature[cluster == k].mean(axis=0) for k in held])
    means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
    likeness = means @ means.T
    np.fill_diagonal(likeness, -np.inf)
    nearest = np.argsort(-likeness, axis=1, kind="stable")[:, : min(NEAR, len(held) - 1)]
    return {int(k): [(int(held[j]), float(likeness[i, j])) for j in nearest[i]] for i, k in enumerate(held)}


def sections(found: Found, shown: Gallery | None) -> str:
    """Sizes of all clusters, then the images of each."""
    sizes = np.bincount(found.cluster, minlength=found.k)
    near = near_clusters(found, found.shown) if found.shown is not None and len(found.shown.row) else {}
    matched = {} if metrics.unscored(found.label) else metrics.matching(found.label, found.cluster)
    rows = []
    parts = []
    for k in range(found.k):
        own = np.flatnonzero(found.cluster == k)
        share = len(own) / max(len(found.cluster), 1)
        known = own[found.label[own] >= 0]
        meaning = ""
        if k in matched and len(known):
            part = float((found.label[known] == matched[k]).mean())
            meaning = f"{part:.0%} are {clean(found.class_name(matched[k]))}"
        links = " ".join(f'<a href="#c{j}">{j}</a> <small>{cosine:.2f}</small>' for j, cosine in near.get(k, []))
        confidence = f"{found.confidence[own].mean():.2f}" if len(own) else "–"
        name = f'<a href="#c{k}"><i style="background:{colour(k)}"></i>{k}</a>' if shown else str(k)
        best, worst = _extremes(shown, own, found) if shown else ([], [])
        rows.append(
            f'<tr><th scope="row">{name}</th>'
            + (f"<td>{shown.strip(k, best[:STRIP])}</td>" if shown else "")
            + (f"<td>{escape(meaning)}</td>" if matched else "")
            + f"<td>{len(own):,}</td><td>{charts.bar(share, sizes.max() / max(sizes.sum(), 1))}"
            f"{share:.1%}</td><td>{confidence}</td>" + (f"<td>{links}</td>" if near else "") + "</tr>"
        )
        if shown:
            parts.append(_cluster(shown, k, len(own), best, worst, meaning))
    head = [
        "cluster",
        *(["most confident"] if shown else []),
        *(["matched class"] if matched else []),
        "images",
        "share",
        "mean confidence",
        *(["near"] if near else []),
    ]
    titles = "".join(f'<th scope="col">{title}</th>' for title in head)
    about_near = "Near: clusters whose mean features point most alike, with the cosine."
    note = f'<p class="note">{about_near}</p>' if near else ""
    return (
        f'<div class="wide"><table class="sizes"><thead><tr>{titles}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
        + note
        + "".join(parts)
    )


def _extremes(shown: Gallery, own: NDArray[np.int64], found: Found) -> tuple[list[int], list[int]]:
    """Numbers of the most confident and of the least certain images of a cluster, the most extreme first."""
    order = own[np.argsort(-found.confidence[own], kind="stable")]
    cut = min(thumbnails.MOST_CONFIDENT, -(-len(own) * 3 // 5))
    # As far as the sample had room for the extremes, without a gap.
    best, worst = (
        [shown.number[row] for row in takewhile(shown.number.__contains__, rows.tolist())]
        for rows in (order[:cut], order[cut:][::-1][: thumbnails.LEAST_CERTAIN])
    )
    return best, worst


def _cluster(shown: Gallery, k: int, size: int, best: list[int], worst: list[int], meaning: str) -> str:
    heading = f"Cluster {k}: {counted(size, 'image', 'images')}" + (f"; {meaning}" if meaning else "")
    content = "<p>Empty.</p>" if not size else ""
    for title, chosen in (("Most confident", best), ("Least certain", worst)):
        if chosen:
            thumbs = "".join(shown.thumb(n, f"{shown.confidence[n]:.0%}") for n in chosen)
            content += f'<h4>{title}</h4><div class="thumbs">{thumbs}</div>'
    return f'<section class="cluster" id="c{k}"><h3><i style="background:{colour(k)}"></i>{escape(heading)}</h3>{content}</section>'
