"""report.html: one file that shows a finished run, made from the session's files alone."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from lib.datasets.folder_tree import counted
from lib.report import charts
from lib.report.clusters import Gallery, clean, sections
from lib.report.session_files import Found
from lib.scoring import metrics
from lib.scoring.label_free import TITLES as LABEL_FREE
from lib.scoring.text_tables import spread

FILE = "report.html"
MEANINGS = {
    "acc": ("ACC", "share of the images in the cluster that is matched to their class"),
    "nmi": ("NMI", "information that clusters share with the classes; 1 is all"),
    "ari": ("ARI", "pairs of images together or apart as in the classes; 0 is chance, 1 is all"),
    "confidence": ("Confidence", "mean probability of an image's cluster; higher is clearer"),
    "pui": ("PUI", "partition uncertainty: how far clusters share their images; lower is better"),
    "silhouette": ("Silhouette", "how far apart the clusters are in the features, −1 to 1; higher is better"),
    "agreement": ("Agreement", "whether images keep their cluster in a random view; 1 is always"),
}
BOOKKEEPING = ("epoch", "step", "rate", "seconds", "pictures_per_second")  # in training.jsonl, beside the losses
_HERE = Path(__file__).parent


def page(found: Found) -> str:
    """The whole report."""
    gallery = Gallery(found) if found.shown is not None else None
    parts = [
        ("overview", "Overview", _overview(found)),
        ("clusters", "Clusters", sections(found, gallery)),
        *([("map", "Map", _map(gallery)), ("find", "Find", _FIND)] if gallery else []),
        ("scores", "Scores", _scores(found)),
        ("training", "Training", _training(found)),
        ("settings", "Settings", _settings(found)),
    ]
    parts = [part for part in parts if part[2]]
    body = "".join(
        f'<section id="{key}" aria-labelledby="{key}-title"><h2 id="{key}-title">{title}</h2>{content}</section>'
        for key, title, content in parts
    )
    name = clean(found.path.resolve().name)
    settings = found.settings
    kind = f"{settings.get('method')}, {found.k} clusters"
    count = counted(len(found.cluster), "image", "images")
    root = settings.get("data_root")
    source = root if settings.get("dataset") == "image_folder" else f"{settings.get('dataset')} in {root}"
    about = clean(f"{kind}, {count} of {source}")
    header = f"<header><h1>{escape(name)}</h1><p>{escape(about)}</p>{_nav(parts)}</header>"
    extra = gallery.dialog + gallery.data if gallery else ""
    script = (_HERE / "script.js").read_text(encoding="utf-8") if gallery else ""
    return document(
        f"{name}: {kind}", (gallery.style if gallery else "") + style(), f"{header}<main>{body}</main>{extra}", script
    )


def style() -> str:
    """The style sheet of every report."""
    return (_HERE / "style.css").read_text(encoding="utf-8")


def document(title: str, style: str, body: str, script: str = "") -> str:
    """A page that loads nothing, and executes nothing but `script`."""
    allowed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{allowed}'"
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{style}</style></head>"
        f"<body>{body}{f'<script>{script}</script>' if script else ''}</body></html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts, the first cell of each row its heading."""
    cells = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    lines = (
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


def _nav(parts: Iterable[tuple[str, str, str]]) -> str:
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in parts)
    return f'<nav aria-label="Parts of this page">{links}</nav>'


def _overview(found: Found) -> str:
    split, values = next(iter(found.scores.items()))
    cards = [
        f"<div><dt>{title}</dt><dd><b>{spread(values[key], None)}</b><span>{meaning}</span></dd></div>"
        for key, (title, meaning) in MEANINGS.items()
        if values.get(key) is not None
    ]
    remarks = []
    if metrics.collapsed(values["entropy"], found.k):
        remarks.append("The clusters collapse: most of the images share few of them.")
    if len(found.skipped):
        listed = "".join(f"<li>{escape(line)}</li>" for line in found.skipped)
        count = counted(len(found.skipped), "image", "images")
        remarks.append(f"<details><summary>{count} could not be read</summary><ul>{listed}</ul></details>")
    noted = "".join(f'<div class="remark">{remark}</div>' for remark in remarks)
    about = f"<p>Of the {'images' if len(found.scores) == 1 else f'split <b>{escape(split)}</b>'}"
    if values.get("acc") is None:
        about += f"; {escape(values.get('unscored', 'there are no labels'))}, so these figures do without"
    return f'{noted}{about}:</p><dl class="cards">{"".join(cards)}</dl>'


def _scores(found: Found) -> str:
    keys = [key for key in MEANINGS if any(values.get(key) is not None for values in found.scores.values())]
    rows = [
        [
            split,
            *(spread(values.get(key), None) for key in keys),
            f"{values['smallest']:.1%}",
            f"{values['largest']:.1%}",
        ]
        for split, values in found.scores.items()
    ]
    content = table(["split", *(MEANINGS[key][0] for key in keys), "smallest cluster", "largest cluster"], rows)
    if not metrics.unscored(found.label):
        counts, rows_, columns = metrics.contingency(found.label, found.cluster)
        matched = metrics.matching(found.label, found.cluster)
        partner = {label: cluster for cluster, label in matched.items()}
        order = sorted(range(len(rows_)), key=lambda i: (int(rows_[i]) not in partner, i))
        first = [partner[int(rows_[i])] for i in order if int(rows_[i]) in partner]
        clusters = first + [int(c) for c in columns if int(c) not in first]
        at = {int(c): j for j, c in enumerate(columns)}
        ordered = counts[np.ix_(order, [at[c] for c in clusters])]
        names = [clean(found.class_name(int(rows_[i]))) for i in order]
        content += "<h3>Classes by cluster</h3><p>Rows are classes, columns clusters, matched ones on the diagonal; "
        content += "the shade is the share of the class.</p>"
        content += charts.confusion(ordered, names, [f"cluster {c}" for c in clusters])
    return content


def _over_time(lines: Sequence[Mapping[str, Any]], key: str, across: str) -> charts.Points:
    return [(line[across], line[key]) for line in lines if line.get(key) is not None and line.get(across) is not None]


def _training(found: Found) -> str:
    last = found.training[-1] if found.training else {}
    parts = [key for key in last if key.endswith("/loss") or ("/" not in key and key not in BOOKKEEPING)]
    shown = {key: _over_time(found.training, key, "epoch") for key in parts}
    if len(shown) == 2:
        shown.pop("loss", None)  # the same as its only part
    # Apart, since their scales are.
    content = "".join(charts.lines(name, {name: points}, "epochs") for name, points in shown.items())
    content = f'<div class="charts">{content}</div>' if content else ""
    first = next(iter(found.scores))
    own = [line for line in found.metrics if line.get("split") == first]
    curves = {title: _over_time(own, key, "epoch") for key, title in (*metrics.TITLES, *LABEL_FREE)}
    if len(own) > 1:
        content += charts.lines(f"Scores of {first}", curves, "epochs")
    if last:
        seconds = sum(line["seconds"] for line in found.training)
        content = (
            f"<p>{last['epoch']:,} epochs, {last['step']:,} steps, {_duration(seconds)} of training, "
            f"{last['pictures_per_second']:,.0f} images a second at the end.</p>" + content
        )
    return content


def _duration(seconds: float) -> str:
    for size, name in ((3600, "hours"), (60, "minutes")):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {name}"
    return f"{seconds:,.0f} seconds"


def _settings(found: Found) -> str:
    last = found.provenance[-1] if found.provenance else {}
    told = {**last, "command": " ".join(map(str, last["command"]))} if "command" in last else dict(last)
    versions = table(["run", ""], [(key, clean(str(value))) for key, value in told.items()])
    rows = table(["setting", ""], [(key, clean(str(value))) for key, value in found.settings.items()])
    return f"{versions}<details><summary>All {len(found.settings)} settings</summary>{rows}</details>"


_FIND = (
    '<p><label for="search">Part of a file name</label> <input type="search" id="search" autocomplete="off"> '
    '<span id="count" role="status"></span></p><div id="results" class="thumbs"></div>'
)


def _map(gallery: Gallery) -> str:
    return (
        f"<p>{gallery.scope} Images whose features point the same way are near each other (t-SNE). Distances between "
        "groups and the sizes of groups say little. Hover, tap, or use the arrow keys and Enter.</p>"
        '<div class="around"><canvas id="plane" tabindex="0" role="application" '
        'aria-label="Map of the images; arrow keys go from one to the next, Enter opens it"></canvas>'
        '<div id="tip" hidden></div></div><p id="told" class="unseen" role="status"></p>'
        f'<div class="chips" role="group" aria-label="Show one cluster alone">{gallery.chips}</div>'
        "<noscript><p>The map needs JavaScript.</p></noscript>"
    )
