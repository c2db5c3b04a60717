"""report.html of several runs side by side: what each found, with a link to its own report."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from lib.config.yaml_files import load_yaml
from lib.errors import UserError
from lib.report import charts, page
from lib.report.clusters import clean
from lib.scoring.choice_of_k import DIRECTIONS
from lib.scoring.label_free import TITLES as LABEL_FREE
from lib.scoring.metrics import TITLES
from lib.scoring.score_files import FINISHED, TRAINED_AGAIN, read_scores, read_summary
from lib.scoring.text_tables import spread


def overview(folder: Path, runs: list[Path]) -> str:
    """The page over the runs of a session.

    Raises:
        UserError: a file of it is missing or damaged.
    """
    try:
        content = read_summary(folder / "summary.json")
        settings = load_yaml(folder / "config.yaml", FINISHED)
        scores = {run: read_scores(run / "scores.json", TRAINED_AGAIN) for run in runs}
        split = next(iter(next(iter(scores.values()))))
        body = _numbers(content, split) + _runs(folder, scores, split)
    except (KeyError, StopIteration) as error:
        raise UserError(
            f"the runs in {folder} are not those of its summary.json; --resume auto makes it again"
        ) from error
    name = clean(folder.resolve().name)
    about = clean(
        f"{settings.get('method')}, {len(runs)} runs: {settings.get('dataset')} in {settings.get('data_root')}"
    )
    header = f"<header><h1>{escape(name)}</h1><p>{escape(about)}</p></header>"
    return page.document(f"{name}: {len(runs)} runs", page.style(), f"{header}<main>{body}</main>")


def _numbers(content: Mapping[str, Any], split: str) -> str:
    """How the scores go with the number of clusters; for seeds alone, how far they agree."""
    agree = content.get("seed_agreement")
    if agree is not None:
        return (
            f"<section><p>The seeds agree by <b>{agree:.3f}</b> (adjusted Rand index, mean of all pairs).</p></section>"
        )
    numbers = content.get("num_clusters", {})
    if len(numbers) < 2:
        return ""
    series = {
        title: [
            (float(k), found_["mean"][split][key])
            for k, found_ in sorted(numbers.items(), key=lambda entry: int(entry[0]))
            if found_["mean"][split].get(key) is not None
        ]
        for key, title in (*LABEL_FREE, *TITLES)
    }
    agreement = [
        (float(k), found_["seed_agreement"])
        for k, found_ in numbers.items()
        if found_.get("seed_agreement") is not None
    ]
    drawn = charts.lines("Scores", {**series, "seeds agree": sorted(agreement)}, "number of clusters")
    return f"<section><h2>By the number of clusters</h2><p>{escape(DIRECTIONS)}</p>{drawn}</section>"


def _runs(folder: Path, scores: Mapping[Path, Mapping[str, Any]], split: str) -> str:
    shown = [
        (key, title)
        for key, title in (*LABEL_FREE, *TITLES)
        if any(run[split].get(key) is not None for run in scores.values())
    ]
    rows = []
    for run, own in sorted(scores.items(), key=lambda entry: _natural(entry[0].name)):
        values = own[split]
        cells = [spread(values.get(key), None) for key, _ in shown]
        cells += [f"{values['smallest']:.1%}", f"{values['largest']:.1%}"]
        link = f'<a href="{escape(str(run.relative_to(folder) / page.FILE))}">{escape(run.name)}</a>'
        rows.append(f'<tr><th scope="row">{link}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>')
    titles = ["run", *(title for _, title in shown), "smallest cluster", "largest cluster"]
    head = "".join(f'<th scope="col">{escape(title)}</th>' for title in titles)
    return (
        f'<section><h2>Runs</h2><p>Of {escape(split)}.</p><div class="wide"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div></section>"
    )


def _natural(name: str) -> list[tuple[str, int]]:
    """Numbers by their value: seed-2 before seed-10."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D+)(\d*)", name)]
