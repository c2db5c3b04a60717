"""report.html: made from the session's files alone, of any pictures, and right in a real browser."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import json
import math
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import QUICK, ROOT, picture
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lib.datasets import Pictures
from lib.errors import UserError
from lib.report import charts, clusters, page, session_files, tensorboard_images, thumbnails
from lib.scoring import metrics, summary_over_seeds
from lib.scoring.inference import Predictions
from main import main

Cli = Callable[..., tuple[int, str, str]]
NAMES = ("with space", "'quotes' and \"more\"", "new\nline", "re\rturn", "<script>document.title='hacked'</script>",
         '"><img src=x onerror=alert(1)>', "</script><b>", "Größe", "猫 🐈", "a&amp;b", os.fsdecode(b"\xff"))  # fmt: skip
COLOURS = ("red", "green", "blue", "white")
WORDS = ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", "--network", "convnet", "--net-width", 4,
         "--tfm-means", 0.485, 0.456, 0.406,
         "--tfm-stds", 0.229, 0.224, 0.225,
         "--tfm-size", 8, "--tfm-resize", 10, "--batch-size", 16, "--max-epochs", 2, "--num-clusters", 4, "--seed", 3,
         "--num-workers", 0)  # fmt: skip


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on 60 pictures whose names are as bad as names can be; their folder is gone."""
    root = tmp_path_factory.mktemp("report")
    for i in range(60):
        name = NAMES[i] if i < len(NAMES) else f"{i:02}"
        file = picture(root / "pictures" / COLOURS[i % 4] / f"{name.replace('/', '∕')}.png", size=(40, 30 + i), seed=i)
        Image.new("RGB", (40, 30 + i), COLOURS[i % 4]).save(file)
    words = (*WORDS, "--data-root", root / "pictures", "--session-root", root / "sessions", "--session", "named")
    assert main([str(word) for word in words]) == 0
    shutil.rmtree(root / "pictures")
    return root / "sessions" / "named"


class Page(html.parser.HTMLParser):
    """The elements of a page, with their attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_the_report_is_made_again_from_the_files_alone(session: Path, tmp_path: Path) -> None:
    first = (session / page.FILE).read_bytes()
    copy = tmp_path / "named"
    shutil.copytree(session, copy)
    (copy / page.FILE).unlink()
    done = subprocess.run([sys.executable, "-m", "lib.report", str(copy)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"report: {(copy / page.FILE).as_uri()}" in done.stdout
    assert (copy / page.FILE).read_bytes() == first


def test_the_page_is_one_file_and_executes_its_own_script_alone(session: Path) -> None:
    text = (session / page.FILE).read_text(encoding="utf-8")
    assert len(text) < 5_000_000
    elements = Page(text).elements
    assert [attributes.get("type") for tag, attributes in elements if tag == "script"] == ["application/json", None]
    assert {tag for tag, _ in elements} & {"iframe", "object", "embed", "base", "img"} == set()
    for tag, attributes in elements:
        assert not [name for name in attributes if name.startswith("on") or name == "src"], (tag, attributes)
        assert (attributes.get("href") or "#").startswith(("#", "data:,"))
    assert "http://" not in text and "https://" not in text
    (script,) = re.findall(r"<script>(.*?)</script>", text, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attributes["content"] for tag, attributes in elements if "http-equiv" in attributes)
    assert policy is not None and policy.startswith("default-src 'none';") and f"script-src 'sha256-{digest}'" in policy


def test_every_name_and_neighbour_is_right(session: Path) -> None:
    run = session_files.read(session)
    assert run.shown is not None and len(run.shown.row) == 60 == len(run.names)
    (text,) = re.findall(r'id="data">(.*?)</script>', (session / page.FILE).read_text(encoding="utf-8"))
    data = json.loads(text)
    assert data["names"] == list(run.names) and {name.split("/")[1] for name in data["names"]} >= {
        f"{name.replace('/', '∕')}.png" for name in NAMES
    }
    feature = run.shown.feature.astype(np.float64)
    distance = np.linalg.norm(feature[:, None] - feature[None], axis=2)
    for n, near in enumerate(data["near"]):
        assert n not in near and len(set(near)) == len(near) == 8
        others = np.delete(distance[n], [n, *near])
        assert distance[n, near].max() <= others.min() + 1e-3
    # Pictures of one colour look the same to the network.
    assert all(data["label"][near[0]] == data["label"][n] for n, near in enumerate(data["near"]))


@pytest.mark.parametrize("block", [1, 7])
def test_neighbours_do_not_depend_on_the_blocks(block: int, session: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = clusters.Gallery(session_files.read(session)).neighbours
    monkeypatch.setattr(clusters, "BLOCK", block)
    assert (clusters.Gallery(session_files.read(session)).neighbours == whole).all()


class Threads:
    """A data set that notes which threads read it."""

    def __init__(self) -> None:
        self.seen: set[int] = set()

    def __len__(self) -> int:
        return 9

    def __getitem__(self, i: int) -> tuple[Image.Image, int]:
        self.seen.add(threading.get_ident())
        if i == 3:
            raise OSError("gone")
        return Image.new("RGB", (20, 20), (20 * i, 0, 0)), 0


def test_thumbnails_of_a_registered_data_set_are_read_by_one_thread() -> None:
    part = Threads()
    images, _ = thumbnails.thumbnails(Pictures({"all": part}), np.arange(9))
    assert part.seen == {threading.get_ident()}
    assert [image.getpixel((5, 5)) for image in images] == [(0 if i == 3 else 20 * i, 0, 0) for i in range(9)]


def test_a_report_shows_a_bounded_number(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thumbnails, "MOST", 20)
    assert cli(*QUICK)[0] == 0
    (path,) = (tmp_path / "sessions").iterdir()
    shown = session_files.read(path).shown
    assert shown is not None and len(shown.row) == 20


@pytest.mark.filterwarnings("error::UserWarning", "error::RuntimeWarning")
@pytest.mark.parametrize("kind", ["one class", "copies", "black", "two"])
def test_degenerate_images_end_without_a_word_of_a_library(kind: str, cli: Cli, tmp_path: Path) -> None:
    for i in range(2 if kind == "two" else 40):
        folder = "x" if kind == "one class" else "xy"[i % 2]
        file = picture(tmp_path / "pictures" / folder / f"{i:02}.png", seed=0 if kind == "copies" else i)
        if kind == "black":
            Image.new("RGB", (12, 10)).save(file)
    status, out, err = cli(
        *WORDS, "--data-root", tmp_path / "pictures", "--num-clusters", 2, "--net-heads", 2, "--cache", tmp_path / "cache",
        "--baseline", "kmeans", "pca_kmeans",
    )  # fmt: skip
    assert status == 0 and "Warning" not in err, err
    (path,) = (tmp_path / "sessions").iterdir()
    scores = json.loads((path / "scores.json").read_text())["all"]
    single = kind == "one class"
    assert all((scores[name] is None) == single for name in metrics.NAMES)
    why = "all 40 labelled images have one class, against which ACC, NMI and ARI mean nothing"
    assert (scores.get("unscored") == why) == (f"warning: all: {why}" in err) == (f"all: {why}" in out) == single
    assert (why in (path / page.FILE).read_text(encoding="utf-8")) == single


def test_thumbnails_show_the_pictures(session: Path) -> None:
    run = session_files.read(session)
    assert run.shown is not None
    means = tensorboard_images.cut_out(run.shown).mean(axis=(1, 2))
    wanted = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    for row, mean in zip(run.shown.row, means, strict=True):
        np.testing.assert_allclose(mean, wanted[run.names[row].split("/")[0]], atol=12)


def test_beside_each_cluster_are_its_most_confident_images(session: Path) -> None:
    run = session_files.read(session)
    assert run.shown is not None
    wide = thumbnails.columns(len(run.shown.row))
    row = run.shown.row.tolist()
    text = (session / page.FILE).read_text(encoding="utf-8")
    strips = re.findall(r'<a class="strip" href="#c(\d+)"[^>]*>(.*?)</a>', text)
    assert [int(k) for k, _ in strips] == np.unique(run.cluster).tolist()
    for k, strip in strips:
        own = np.flatnonzero(run.cluster == int(k))
        best = own[np.argsort(-run.confidence[own], kind="stable")][: min(clusters.STRIP, -(-len(own) * 3 // 5))]
        places = [(int(x), int(y)) for x, y in re.findall(r"--x:(\d+);--y:(\d+)", strip)]
        assert places == [(row.index(i) % wide, row.index(i) // wide) for i in best]


def test_the_header_names_the_folder_of_images(session: Path) -> None:
    text = (session / page.FILE).read_text(encoding="utf-8")
    assert f"<p>pica, 4 clusters, 60 images of {session.parent.parent / 'pictures'}</p>" in text


def test_tensorboard_has_the_features_the_clusters_and_the_settings(session: Path) -> None:
    folder = session / "tfboard"
    (tensors,) = folder.rglob("tensors.tsv")
    run = session_files.read(session)
    assert run.shown is not None
    np.testing.assert_allclose(np.loadtxt(tensors), run.shown.feature, atol=1e-6)
    lines = (tensors.parent / "metadata.tsv").read_text().splitlines()
    assert len(lines) == 61 and all(line.count("\t") == 3 for line in lines)
    assert (tensors.parent / "sprite.png").is_file()
    curves = EventAccumulator(str(folder)).Reload()
    held = {f"Clusters/{k:03}" for k in set(run.cluster.tolist())}
    assert set(curves.Tags()["images"]) == held
    assert {"Final/all/acc", "Final/all/confidence"} <= set(curves.Tags()["scalars"])


@pytest.mark.parametrize("there", [True, False])
def test_open_shows_the_report(
    there: bool, cli: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    monkeypatch.setattr("webbrowser.open", lambda address: shown.append(address) or there)
    status, out, err = cli(*QUICK, "--session", "a b", "--open")
    address = (tmp_path / "sessions" / "a b" / page.FILE).as_uri()
    assert status == 0 and shown == [address] and f"webbrowser {address}\n" in out and "a%20b" in address
    assert ("no browser was found" in err) != there
    status, _, err = cli(*QUICK, "--debug", "--open")
    assert status == 2 and "--open shows the report" in err and err.count("\n") == 1


@pytest.mark.parametrize("name", ["predictions.npz", "shown.npz", "scores.json", "predictions.csv"])
def test_damaged_files_end_in_one_line(
    name: str, session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lib.report.__main__ import main

    shutil.copytree(session, tmp_path / "a")
    (tmp_path / "a" / name).write_bytes((session / name).read_bytes()[:100])
    assert main([str(tmp_path / "a")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and str(tmp_path) in err


SCORES = {"acc": 0.5, "smallest": 0.1, "largest": 0.4, "entropy": 1.2}
TRAINING = {"epoch": 1, "step": 4, "seconds": 1.0, "pictures_per_second": 9.0, "loss": 1.0}
NESTED = "[" * 100_000
WRONG = [
    *(("scores.json", text) for text in (
        "{}", "[]", "5", NESTED, '{"all": 5}', '{"all": {"acc": NaN}}', '{"all": {"acc": "x"}}', '{"all": {"acc": 0.5}}',
        *(json.dumps({"all": SCORES | wrong}) for wrong in (
            {"acc": "x"}, {"acc": True}, {"acc": math.nan}, {"acc": 10**400}, {"entropy": None}, {"nmi": []}, {"unscored": 5},
            {"baselines": 5}, {"baselines": {"kmeans": 5}},
        )),
    )),
    *(("training.jsonl", text) for text in (
        "5", "null", "{}", NESTED, '{"epoch": 1', *(json.dumps(TRAINING | {key: value}) for key, value in (
            ("seconds", "x"), ("epoch", None), ("loss", []), ("other/loss", {}), ("step", math.inf),
        )),
    )),
    *(("metrics.jsonl", text) for text in ("5", NESTED, '{"split": "all", "epoch": "x", "acc": 1}', '{"acc": "x"}')),
    *(("provenance.jsonl", text) for text in ("null", "[]", NESTED, '{"command": 5}')),
    *(("summary.json", text) for text in (
        "{}", "[]", NESTED, '{"num_clusters": {}}', '{"num_clusters": {"x": {}}}', '{"seeds": {}, "mean": {"all": 5}}',
        '{"seeds": {}, "mean": {"all": {}}, "deviation": {}}', '{"seeds": {}, "mean": {}, "deviation": {}, "seed_agreement": "x"}',
    )),
    ("predictions.csv", "path,cluster\n\n"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "text"), WRONG, ids=[f"{name}-{i}" for i, (name, _) in enumerate(WRONG)])
def test_another_structure_ends_in_one_line(
    name: str, text: str, session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lib.report.__main__ import main

    shutil.copytree(session, tmp_path / "a")
    (tmp_path / "a" / name).write_text(text + "\n")
    assert main([str(tmp_path / "a")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and str(tmp_path / "a") in err and len(err) < 1000
    assert name in err or name == "predictions.csv"
    assert ("--evaluate" in err) <= (name in ("scores.json", "predictions.csv"))


@pytest.mark.parametrize("name", ["scores.json", "metrics.jsonl", "training.jsonl", "provenance.jsonl", "shown.npz",
                                  "config.yaml", "predictions.npz", "predictions.csv"])  # fmt: skip
def test_a_fifo_is_no_file_of_a_session(
    name: str, session: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from lib.report.__main__ import main

    shutil.copytree(session, tmp_path / "a")
    (tmp_path / "a" / name).unlink()
    os.mkfifo(tmp_path / "a" / name)
    assert main([str(tmp_path / "a")]) == 2
    assert str(tmp_path / "a") in capsys.readouterr().err


@pytest.mark.parametrize("spoil", ["gone", "empty", "cut", "without a loss", "a FIFO"])
def test_a_finished_run_without_its_last_loss_is_named(spoil: str, session: Path, tmp_path: Path) -> None:
    shutil.copytree(session, tmp_path / "a")
    file = tmp_path / "a" / "metrics.jsonl"
    whole = file.read_text()
    assert summary_over_seeds.of_seeds({"3": tmp_path / "a"})["chosen"] == "3"
    file.unlink()
    if spoil == "a FIFO":
        os.mkfifo(file)
    elif spoil != "gone":
        file.write_text({"empty": "", "cut": whole[:-20], "without a loss": '{"split": "all"}\n'}[spoil])
    with pytest.raises(UserError, match="metrics.jsonl.*; remove the run's folder, and it is trained again"):
        summary_over_seeds.of_seeds({"3": tmp_path / "a"})


def test_extremes_are_among_the_shown() -> None:
    random = np.random.default_rng(0)
    probability = random.dirichlet(np.full(7, 0.3), 3000).astype(np.float32)
    predictions = Predictions(np.arange(3000) * 2, probability)
    rows = thumbnails.choose(predictions, 500)
    assert len(rows) == 500 == len(set(rows.tolist())) and (np.diff(rows) > 0).all()
    confidence = probability.max(axis=1)
    cluster = predictions.cluster
    for k in range(7):
        own = np.flatnonzero(cluster == k)
        order = own[np.argsort(-confidence[own], kind="stable")]
        assert set(order[: thumbnails.MOST_CONFIDENT]) | set(order[-thumbnails.LEAST_CERTAIN :]) <= set(rows.tolist())
    assert thumbnails.choose(predictions, 3000).tolist() == list(range(3000))
    assert len(thumbnails.choose(predictions, 5)) == 5  # fewer than clusters


def test_the_sheet_keeps_its_bound() -> None:
    random = np.random.default_rng(0)
    noise = [Image.fromarray(random.integers(0, 256, (64, 64, 3), dtype=np.uint8)) for _ in range(2000)]
    content, side = thumbnails.sprite_of(noise)
    assert len(content) <= thumbnails.BYTES and side >= 16


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.31, 0.34), (-3.2, 17), (5, 5), (1e-4, 3e-4), (0, 0), (1, 200)])
def test_ticks_cover_what_is_drawn(low: float, high: float) -> None:
    marks = charts.ticks(low, high)
    assert marks[0] <= low + 1e-12 and marks[-1] >= high - 1e-12 and 2 <= len(marks) <= 8
    np.testing.assert_allclose(np.diff(marks), marks[1] - marks[0])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    with sync.sync_playwright() as playwright:
        found_ = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield found_
        found_.close()


@pytest.mark.parametrize(("width", "scheme"), [(390, "dark"), (1280, "light")])
def test_in_a_browser(width: int, scheme: str, browser: Any, session: Path) -> None:
    tab = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    told: list[str] = []
    tab.on("console", lambda message: told.append(message.text))
    tab.on("pageerror", lambda error: told.append(str(error)))
    tab.on("request", lambda request: request.url.startswith(("file:", "data:")) or told.append(request.url))
    tab.goto((session / page.FILE).as_uri())
    assert tab.title() == "named: pica, 4 clusters"  # no file's name has changed it
    assert tab.evaluate("document.documentElement.scrollWidth") <= width

    # Every picture that is shown lies on one sheet, which decodes.
    size = tab.evaluate("""async () => {
        const sheet = new Image();
        sheet.src = getComputedStyle(document.querySelector(".t")).backgroundImage.slice(5, -2);
        await sheet.decode();
        return [sheet.naturalWidth, sheet.naturalHeight];
    }""")
    assert size == [8 * 48, 8 * 48]
    shown = tab.evaluate(
        "[...document.querySelectorAll('#clusters .cluster .t')].map((one) => Number(one.dataset.n)).sort((a, b) => a - b)"
    )
    sizes = np.bincount(session_files.read(session).cluster)
    assert (
        len(shown) == len(set(shown)) == np.minimum(sizes, thumbnails.MOST_CONFIDENT + thumbnails.LEAST_CERTAIN).sum()
    )

    # A page does what it is asked to a moment later, so each answer is waited for.
    seen = pytest.importorskip("playwright.sync_api").expect
    seen.set_options(timeout=30_000)  # ms; both cores may be busy
    tab.fill("#search", "SCRIPT")
    seen(tab.locator("#results .t")).to_have_count(2)
    seen(tab.locator("#count")).to_have_text("2 of 60")
    tab.locator("#results .t").first.focus()
    tab.keyboard.press("Enter")
    seen(tab.locator("#picture")).to_be_visible()
    seen(tab.locator("#picture-near .t")).to_have_count(8)
    seen(tab.locator("#picture-name")).to_contain_text("script")
    tab.locator("#picture-near .t").first.click()
    seen(tab.locator("#picture")).to_be_visible()
    tab.keyboard.press("Escape")
    seen(tab.locator("#picture")).to_be_hidden()

    for _ in range(3):
        tab.locator("#plane").press("ArrowRight")
    seen(tab.locator("#tip .t")).to_be_visible()
    tab.locator("#plane").hover(position={"x": 1, "y": 1}, force=True)  # beside all pictures
    tab.mouse.move(0, 0)
    seen(tab.locator("#tip .t")).to_be_visible()
    seen(tab.locator("#told")).to_contain_text("cluster")
    tab.locator("#plane").press("Enter")
    seen(tab.locator("#picture")).to_be_visible()
    tab.keyboard.press("Escape")
    seen(tab.locator("#picture")).to_be_hidden()
    tab.locator(".chips button").nth(1).click()
    seen(tab.locator(".chips button[aria-pressed=true]")).to_have_text("0")
    unnamed = tab.evaluate(
        "[...document.querySelectorAll('button')].filter((one) => !one.textContent.trim() && !one.ariaLabel).length"
    )
    assert unnamed == 0
    assert told == []
    tab.close()
