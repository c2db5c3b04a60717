"""What a run prints: on a terminal, into a pipe, at its start, in its middle and at its end."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import QUICK, ROOT, picture
from runs import IMC, only

from lib.report import closing_block
from lib.scoring import evaluation
from lib.session import wrapped
from lib.training import run_progress, time_estimate
from lib.training.run_length import RunLength
from lib.training.time_estimate import TimeEstimate, duration

Cli = Callable[..., tuple[int, str, str]]
PHOTOS = ("--dataset", "image_folder", "--network", "convnet", "--net-width", 4, "--tfm-size", 8, "--tfm-resize", 10,
          "--batch-size", 8, "--num-clusters", 3, "--num-workers", 0, "--eval-sample", 10, "--seed", 1)  # fmt: skip
EARLIER = re.compile(r"head\d|shares|pictures|:online|goes on")  # words of former consoles


def images(folder: Path, count: int = 24) -> Path:
    for number in range(count):
        picture(folder / f"{number}.png", seed=number)
    (folder / "notes.txt").write_text("x")
    return folder


def terminal(
    words: tuple[object, ...], root: Path, columns: int = 80, interrupt: str = "", **environment: str
) -> tuple[int, str]:
    """Run a command line in a terminal: (status, everything that was written to it).

    Args:
        words: of the command line.
        root: where its sessions go.
        columns: of the terminal.
        interrupt: once this is written, Ctrl-C is typed.
        environment: variables; those of a CI job are unset.
    """
    command = [sys.executable, "main.py", *map(str, words), "--session-root", str(root)]
    kept = {name: value for name, value in os.environ.items() if name not in ("CI", "COLUMNS")}
    size = {
        "OMP_NUM_THREADS": "1",
        "TERM": "xterm",
        "PYTHONIOENCODING": "utf-8",
    }
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    process = subprocess.Popen(
        command, cwd=ROOT, env={**kept, **size, **environment}, stdin=follower, stdout=follower, stderr=follower
    )
    os.close(follower)
    written = b""
    end = time.monotonic() + 150
    while time.monotonic() < end:
        ready, _, _ = select.select([leader], [], [], 0.2)
        try:
            part = os.read(leader, 65536) if ready else b""
        except OSError:  # the other end is closed
            break
        written += part
        if interrupt and interrupt.encode() in written:
            interrupt = ""
            process.send_signal(signal.SIGINT)
        if not part and process.poll() is not None:
            break
    if process.poll() is None and time.monotonic() > end:
        process.kill()
    process.wait(timeout=30)
    os.close(leader)
    return process.returncode, written.decode()


def commands(out: str) -> dict[str, str]:
    """What the last block says one can do next → the command."""
    lines = out[out.index("\nnext\n") :].splitlines()[2:]
    return {title.strip(" :"): command.strip() for title, command in zip(lines[::2], lines[1::2], strict=False)}


def pasted(command: str) -> subprocess.CompletedProcess[str]:
    """Run by a shell, in the folder of the program."""
    browser = {"BROWSER": "true", "DISPLAY": ""}
    return subprocess.run(command, shell=True, cwd=ROOT, env={**os.environ, **browser}, capture_output=True, text=True)


def test_the_start_says_what_is_run(cli: Cli, tmp_path: Path) -> None:
    _, out, _ = cli(*QUICK, "--session", "a")
    lines = dict(re.findall(r"^(\w+) +(.*)$", out[: out.index("\nepoch")], flags=re.MULTILINE))
    assert lines["method"] == "PICA (Huang et al., CVPR 2020), 10 clusters"
    assert lines["data"] == "digits: 1,797 images, 10 classes"
    assert lines["training"] == "train (899 images)" and lines["scored"] == "test (898); labels are used for this only"
    assert lines["network"].startswith("convnet, starts from random weights; ")
    assert lines["device"].startswith("CPU, ") and lines["device"].endswith("float32") and lines["seed"] == "7"
    assert lines["output"] == f"{tmp_path}/sessions/a/" and lines["steps"] == "8 in 1 epoch"
    assert lines["views"] == "batched, 1,797 images of 8×8 px in memory"


def test_the_start_names_a_folder_and_what_is_left_out(cli: Cli, tmp_path: Path) -> None:
    root = images(tmp_path / "photos")
    _, out, err = cli(*PHOTOS, "--data-root", root, "--max-epochs", 1, "--debug")
    assert f"data     image_folder in {root}\n         24 images, no labels; left out: 1 .txt\n" in out
    assert "output   none, because of --debug" in out and "No file was written" in out
    assert "24 images for 3 clusters are 8.0 for each" in err and "(--num-clusters 2)" in err


def test_enough_images_are_not_warned_of(cli: Cli, tmp_path: Path) -> None:
    _, _, err = cli(*PHOTOS, "--data-root", images(tmp_path / "photos", 30), "--max-epochs", 1)
    assert "for each" not in err


def test_a_frozen_network_is_said_to_be_frozen(cli: Cli) -> None:
    _, out, _ = cli(*QUICK, "--net-freeze", ".*")
    assert re.search(r"^network  convnet with random weights, .*, frozen; [\d,]+ weights", out, flags=re.MULTILINE)


@pytest.mark.parametrize("words", [QUICK, IMC], ids=["pica", "imc_swav"])
def test_a_pipe_gets_a_line_for_each_evaluation_in_plain_words(words: tuple[object, ...], cli: Cli) -> None:
    _, out, err = cli(*words, "--max-epochs", 4, "--eval-every", 2, "--display-freq", 1)
    lines = [line for line in out.splitlines() if line.startswith("epoch")]
    assert [line.split(":")[0] for line in lines] == ["epoch 2 of 4", "epoch 4 of 4"]
    number = r"\d\.\d{3}"
    assert re.fullmatch(
        rf"epoch 4 of 4: test ACC {number}, NMI {number}, ARI {number}; cluster sizes [\d.]+–\d+ %", lines[-1]
    )
    assert not EARLIER.search(out + err)
    assert "step " not in out and max(map(len, lines)) <= 100


def test_verbose_shows_epochs_and_every_score(cli: Cli) -> None:
    words = (*IMC, "--max-epochs", 2, "--eval-every", 2, "--display-freq", 2, "--batchnorm-scores", "train_bn", "plain")
    _, out, _ = cli(*words, "--verbose")
    assert re.search(r"^epoch 1 of 2: loss -?\d+\.\d{4}, [\d,]+ images/s", out, flags=re.MULTILINE)
    assert "epoch 1 of 2, step 2/" in out
    assert "accuracy of the assignments made while training: ACC" in out
    assert "  test, under BatchNorm statistics plain: ACC" in out
    assert not EARLIER.search(out)


def test_brief_and_verbose_exclude_each_other(cli: Cli) -> None:
    status, _, err = cli(*QUICK, "--brief", "--verbose")
    assert status == 2 and "--brief shows less" in err


def test_the_log_keeps_the_parts_of_the_loss(cli: Cli, tmp_path: Path) -> None:
    cli(*QUICK, "--session", "a", "--display-freq", 2)
    log = (tmp_path / "sessions/a/log.txt").read_text()
    assert "INFO epoch 1/1: loss" in log and "head1-10/loss" in log and "shares" in log and "step 2/8" in log
    assert "INFO method   PICA" in log and "INFO ACC 0." in log and "accuracy of the" not in log


def test_a_long_silence_ends_with_how_far_the_run_is(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_progress, "SILENCE", 0.0)
    monkeypatch.setattr(time_estimate, "SLOW", 0.0)
    _, out, _ = cli(*QUICK)
    assert re.search(r"^epoch 1 of 1: loss \d\.\d\d, [\d,]+ images/s, \d+ s left$", out, flags=re.MULTILINE)
    _, out, _ = cli(*QUICK, "--brief")
    assert "images/s" not in out


@pytest.mark.parametrize("columns", [80, pytest.param(120, marks=pytest.mark.slow)])
def test_a_terminal_gets_a_bar(columns: int, tmp_path: Path) -> None:
    words = (*QUICK, "--max-epochs", 40, "--eval-every", 20, "--baseline", "kmeans")
    status, out = terminal(words, tmp_path, columns)
    assert status == 0, out
    bars = [line for line in re.split(r"[\r\n]+", out) if "|" in line]
    assert any(
        re.search(r"epoch \d+ of 40 +\d+% \|.*\| loss \d\.\d\d, [\d,]+ images/s, \d+ s left", bar) for bar in bars
    )
    assert max(map(len, bars)) <= columns
    lines = [line.rstrip() for line in out.replace("\r\n", "\n").split("\n") if "\r" not in line]
    assert (
        max(len(line) for line in lines if "main.py" not in line and "file:" not in line and "/" not in line) < columns
    )
    assert sum(": test ACC" in line for line in out.splitlines()) == 2


@pytest.mark.parametrize("how", ["CI", *(pytest.param(how, marks=pytest.mark.slow) for how in ("TERM", "brief"))])
def test_no_bar_where_a_log_would_keep_each_of_its_states(how: str, tmp_path: Path) -> None:
    environment = {"CI": {"CI": "1"}, "TERM": {"TERM": "dumb"}, "brief": {}}[how]
    words = (*QUICK, *(["--brief"] if how == "brief" else []))
    status, out = terminal(words, tmp_path, **environment)
    assert status == 0 and "%|" not in out and "% |" not in out and "epoch 1 of 1: test ACC" in out


def test_ctrl_c_says_that_once_is_enough_and_how_to_resume(tmp_path: Path) -> None:
    words = (*QUICK, "--max-epochs", 4000, "--eval-every", 0)
    status, out = terminal(words, tmp_path, interrupt="left")
    assert status == 130 and "Press Ctrl-C again" in out, out
    assert out.splitlines()[-1] == "stopped by SIGINT; the state is saved"
    (command,) = re.findall(r"To resume this run:\r?\n +(.*--resume .*?)\r?\n", out)
    done = pasted(f"{command} --max-steps 1")
    assert done.returncode == 0 and "resumed after step" in done.stdout, done.stderr


def test_a_console_without_unicode_gets_plain_signs(tmp_path: Path) -> None:
    command = [sys.executable, "main.py", *map(str, QUICK), "--session-root", str(tmp_path)]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert re.search(r"cluster sizes [\d.]+-\d+ %", done.stdout) and "8x8 px" in done.stdout and "\\" not in done.stdout


def test_a_warning_is_wrapped_between_words_and_its_commands_are_not() -> None:
    text = "warning: " + "word " * 30 + "\n  python main.py " + "--flag " * 30
    first, *rest = wrapped(text, 40, 2).split("\n")
    assert len(first) < 40 and all(line.startswith("  ") for line in rest)
    assert all(len(line) < 40 for line in rest[:-1]) and rest[-1] == text.split("\n")[1]


def test_a_run_of_hours_names_faster_ways(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = images(tmp_path / "photos")
    words = (*PHOTOS, "--data-root", root, "--max-epochs", 30, "--max-steps", 6, "--network", "resnet18")
    assert "Faster" not in cli(*words)[2]
    monkeypatch.setattr(time_estimate, "SLOW", 0.0)
    monkeypatch.setattr(time_estimate, "LONG", 0.0)
    _, out, err = cli(*words, "--session", "b")
    assert "time     about " in out and "warning: on this CPU, the run takes about " in err
    assert f"configs/base.yaml configs/pretrained.yaml --data-root {root} --num-clusters 3\n" in err
    assert f"configs/base.yaml configs/cpu/pica.yaml --data-root {root} --num-clusters 3\n" in err
    assert "--gpus 0" in err and err.count("Faster") == 1
    log = (tmp_path / "sessions/b/log.txt").read_text()
    assert log.index("Faster") < log.index("epoch 1"), "it is said before a person has waited"


def test_fewer_epochs_are_advised_where_they_are_enough_and_save_time() -> None:
    assert time_estimate.shorter_run(epoch=120, epochs=100) == 30
    assert time_estimate.shorter_run(epoch=120, epochs=31) is None, "it would save two minutes"
    assert time_estimate.shorter_run(epoch=1200, epochs=100) is None, "three epochs teach nothing"


def test_a_time_is_estimated_from_steps_and_evaluations() -> None:
    length = RunLength(steps_per_epoch=10, epochs=6, max_steps=None, eval_every=3)
    estimate = TimeEstimate(length, batches=3)
    estimate.add_step(4.0)  # which sets up
    assert not estimate.is_known
    for _ in range(3):
        estimate.add_step(2.0)
    assert estimate.is_known and estimate.evaluation() == 2.0
    assert estimate.remaining(4) == 56 * 2 + 2 * 2
    estimate.add_evaluation(9.0)
    assert estimate.remaining(30) == 30 * 2 + 9 and estimate.remaining(60) == 0
    assert estimate.epoch() == 20 + 3
    slow = TimeEstimate(length, batches=3)
    slow.add_step(6.0)
    assert slow.is_known and slow.step() == 6.0


@pytest.mark.parametrize(
    ("length", "steps", "evaluations"),
    [
        (RunLength(10, 6, None, 1), 60, 6),
        (RunLength(10, 6, None, 0), 60, 1),
        (RunLength(10, 6, None, 4), 60, 2),
        (RunLength(10, 6, 35, 1), 35, 4),
        (RunLength(10, 0, None, 1), 0, 0),
    ],
)
def test_the_length_counts_steps_and_evaluations(length: RunLength, steps: int, evaluations: int) -> None:
    assert length.steps == steps and length.evaluations_after(0) == evaluations


def test_durations_are_as_exact_as_an_estimate() -> None:
    seconds = (0.1, 40, 59.8, 250, 4000, 6 * 3600, 17.2 * 3600, 80 * 3600)
    assert [*map(duration, seconds)] == ["1 s", "40 s", "1 min", "4 min", "1 h 10 min", "6 h", "17 h", "3 days"]


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (0.2, "pica is better than k-means on pixels"),
        (0.0, "about as good as k-means"),
        (-0.2, "pica is worse than k-means"),
    ],
)
def test_the_end_compares_with_the_baseline(
    difference: float, words: str, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def scores(task: Any, *_: Any) -> Any:
        own = task_scores[0]
        worse = {
            split: {name: own[split][name] - difference for name in ("acc", "nmi", "ari")} for split in task.splits
        }
        return {"k-means on pixels": worse}

    task_scores: list[Any] = []
    evaluate = evaluation.evaluate
    monkeypatch.setattr(evaluation, "evaluate", lambda *a: task_scores.append((made := evaluate(*a)).scores) or made)
    monkeypatch.setattr("lib.scoring.baselines.scores", scores)
    status, out, err = cli(*QUICK, "--baseline", "kmeans")
    assert status == 0 and words in out + err, err
    assert ("more epochs" in err) == (difference < 0), "what to do, or what will not help"
    acc = json.loads((only(tmp_path / "sessions") / "scores.json").read_text())["test"]["acc"]
    assert f"ACC {acc:.3f}  {100 * acc:.0f} % of the test images are in the cluster of their class" in out


def test_the_end_of_a_folder_that_is_not_split_speaks_of_all_its_images(cli: Cli, tmp_path: Path) -> None:
    table = tmp_path / "classes.csv"
    root = images(tmp_path / "photos")
    table.write_text(
        "file,class\n" + "".join(f"{path.name},{i % 2}\n" for i, path in enumerate(sorted(root.glob("*.png"))))
    )
    _, out, err = cli(*PHOTOS, "--data-root", root, "--labels", table, "--max-epochs", 1)
    assert " % of the images are in the cluster of their class" in out, err


def test_the_end_without_labels_says_what_is_known_and_that_the_images_tell(cli: Cli, tmp_path: Path) -> None:
    _, out, _ = cli(*PHOTOS, "--data-root", images(tmp_path / "photos", 40), "--max-epochs", 30, "--baseline", "kmeans")
    assert "all: no labels, so no ACC, NMI and ARI; confidence 0." in out
    assert "Clusters of one size would have 33 % of the images each." in out
    assert all(
        f"  {name}: {text}" in out for name, text in closing_block.WITHOUT_LABELS.items() if name == "confidence"
    )
    assert "The images tell whether" in out and "k-means" not in out


@pytest.mark.slow
def test_the_commands_of_the_end_run_as_they_are(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = images(tmp_path / "my photos", 40)
    status, out, err = cli(*PHOTOS, "--net-heads", 3, "--data-root", root, "--max-epochs", 2, "--session", "a b")
    assert status == 0, err
    monkeypatch.chdir(ROOT)
    offered = commands(out)
    assert len(offered) == 5 and "'" in next(iter(offered.values())) + "".join(offered.values())
    copies = ROOT / "sorted-a b"
    try:
        for title, command in offered.items():
            if "compare" not in title:
                done = pasted(command)
                assert done.returncode == 0, (title, command, done.stderr)
        assert len(list(copies.rglob("*.png"))) == 40
    finally:
        subprocess.run(["rm", "-rf", str(copies)], check=True)
    metrics = (tmp_path / "sessions/a b/metrics.jsonl").read_text().splitlines()
    assert json.loads(metrics[-1])["epoch"] == 4, "twice as long"
    assert "--num-clusters 2 3 4 --net-heads none" in next(v for t, v in offered.items() if "compare" in t)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(*QUICK, "--net-heads", 10), (*IMC, "--max-epochs", 1)], ids=["pica", "imc_swav"])
def test_other_numbers_of_clusters_are_compared_by_the_command(words: tuple[object, ...], cli: Cli) -> None:
    _, out, _ = cli(*words)
    command = commands(out)["compare other numbers of clusters"]
    done = pasted(command)
    assert done.returncode == 0 and "--num-clusters 8 10 12" in command, done.stderr
    again = pasted(next(iter(commands(done.stdout).values())))
    assert again.returncode == 0


@pytest.mark.slow
def test_a_family_has_short_lines_for_its_members_and_one_end(tmp_path: Path) -> None:
    unseeded = tuple(word for i, word in enumerate(QUICK) if "--seed" not in QUICK[i - 1 : i + 1])
    command = [
        sys.executable,
        "main.py",
        *map(str, unseeded),
        "--seeds",
        "3-4",
        "--jobs",
        "2",
        "--session-root",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    for seed in (3, 4):
        own = [line.split(" | ")[1] for line in lines if line.startswith(f"seed {seed} | ")]
        assert [line.split(":")[0] for line in own if line] == ["epoch 1 of 1", "finished"]
    for once in ("method   PICA", "runs     2: seed 3; seed 4", "\nnext\n", "standard deviation"):
        assert done.stdout.count(once) == 1, once
    offered = commands(done.stdout)
    resumed = pasted(offered["resume runs that are missing; with --seeds or --num-clusters, add others"])
    assert resumed.returncode == 0 and "2 of 2 runs are done" in resumed.stdout, resumed.stderr
    (other,) = (command for title, command in offered.items() if title.startswith("cluster"))
    done = pasted(other.replace("FOLDER", str(images(tmp_path / "photos"))))
    assert done.returncode == 0, done.stderr


class Console:
    """Keeps what it is told to say."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def warn(self, text: str, *more: str) -> None:
        self.texts.append(text)


@pytest.mark.parametrize(
    ("is_early", "frees", "says"),
    [(True, True, "often passes"), (True, False, "of little use"), (False, True, "of little use")],
)
def test_a_collapse_is_told_with_what_to_do(is_early: bool, frees: bool, says: str) -> None:
    console: Any = Console()

    class Collapsing:
        num_clusters = 10
        remedy = "another --seed"
        frees_clusters = frees

    method: Any = Collapsing()
    assert evaluation.warn_of_collapse(console, {"entropy": 0.1, "largest": 0.98}, method, is_early)
    (text,) = console.texts
    assert "the largest of 10 holds 98 % of the images" in text and says in text and "try another --seed" in text
    assert not evaluation.warn_of_collapse(console, {"entropy": 2.2, "largest": 0.2}, method, is_early)
    assert len(console.texts) == 1


def test_a_few_new_images_in_one_cluster_are_no_collapse(cli: Cli, tmp_path: Path) -> None:
    cli(*PHOTOS, "--data-root", images(tmp_path / "photos", 40), "--max-epochs", 1, "--session", "trained")
    model = tmp_path / "sessions/trained/checkpoint/latest.ckpt"
    for count, is_told in ((1, False), (30, True)):
        root = images(tmp_path / f"new {count}", count)
        for path in root.glob("*.png"):
            path.write_bytes((root / "0.png").read_bytes())
        _, _, err = cli("--predict", model, "--data-root", root)
        assert ("the clusters collapse" in err) == is_told, err


def test_a_collapse_is_warned_of_when_it_begins_and_at_the_end(cli: Cli) -> None:
    _, out, err = cli(*QUICK, "--base-lr", 1, "--pica-lamda", 0, "--max-epochs", 6)
    assert err.count("the clusters collapse") == 2 and "a --pica-lamda above 0 " in err, err
    assert "train anew, as from another seed" in out and "--seed 8" in out
    assert "--predict" not in out and "--resume" not in out, "such a model is of no use"
    assert err.count("of little use") == 1 and out.count("\nepoch") == 6


def test_a_loss_at_its_bound_is_told_once_for_each_part(cli: Cli) -> None:
    _, _, err = cli(*QUICK, "--base-lr", 0, "--max-epochs", 6)
    assert err.count("nothing is learnt so far") == 2 and "--base-lr" in err, "two heads"
