from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import DIGITS, QUICK, ROOT, resolve

import main
from lib.runs import forecast

Cli = Callable[..., tuple[int, str, str]]
CIFAR10 = ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/cifar10.yaml", "--data-root", "nowhere")


@pytest.fixture(autouse=True)
def pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def rows(out: str) -> list[tuple[str, str]]:
    """(label, text) of each row, unwrapped."""
    labelled = re.findall(r"^(\w+) +(.*(?:\n {9}.*)*)$", out, re.MULTILINE)
    return [(label, " ".join(text.split())) for label, text in labelled]


def seconds(text: str) -> float:
    duration = re.match(r"about ([\d,.]+) (second|minute|hour)s?", text)
    assert duration, text
    return float(duration[1].replace(",", "")) * {"second": 1, "minute": 60, "hour": 3600}[duration[2]]


@pytest.mark.parametrize("words", [QUICK, CIFAR10], ids=["small", "large"])
def test_the_device_that_would_be_used_comes_first(words: tuple[object, ...], cli: Cli) -> None:
    status, out, err = cli(*words, "--dry-run")
    assert status == 0, err
    labels = [label for label, _ in rows(out)]
    assert labels.count("device") == labels.count("time") == 1
    assert labels.index("device") < labels.index("time") < labels.index("GPU")
    shown = dict(rows(out))
    threads = torch.get_num_threads()
    assert shown["device"] == f"CPU, {threads} thread{'s' if threads > 1 else ''}"
    assert "to train" in shown["time"]
    assert max(map(len, out.partition("to start it:")[0].splitlines())) <= 80


def test_a_short_step_is_timed_and_a_long_one_counted(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    _, out, _ = cli(*QUICK, "--dry-run")
    text = dict(rows(out))["time"]
    stated = re.search(r": (\d+) steps of ([\d,.]+) ms, as one that was timed here", text)
    assert stated and stated[1] == "8"
    assert seconds(text) == pytest.approx(max(8 * float(stated[2].replace(",", "")) / 1e3, 1), rel=0.05, abs=0.6)
    monkeypatch.setattr(forecast, "_product_rate", lambda device, dtype: 1e12)
    _, out, _ = cli(*CIFAR10, "--dry-run")
    text = dict(rows(out))["time"]
    assert "by the 2,723.8 GFLOP of a step and a matrix product" in text
    assert seconds(text) == pytest.approx(94_000 * 2723.8e9 / (forecast.SHARE_OF_PRODUCT["cpu"] * 1e12), rel=0.01)


def test_timing_a_step_leaves_the_task_as_it_is() -> None:
    task = main.build(resolve(*QUICK, "--dry-run"))
    before = {name: value.clone() for name, value in task.method.state_dict().items() if torch.is_tensor(value)}
    assert 0 < forecast._timed_step(task) < 60
    after = task.method.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_prediction_is_named_one_and_follows_from_the_counted_work() -> None:
    text = forecast.predicted(int(0.36 * 989e12 / 100), 0, 6000)
    assert text == (
        "predicted on an H100 in bfloat16: 10.0 ms a step, 1.0 minutes for the run (predicted, not measured)"
    )
    assert "20.0 ms a step" in forecast.predicted(int(0.36 * 989e12 / 100), int(3.35e12 / 100 / 3), 6000)


def test_no_gpu_time_is_made_up_for_a_tiny_step(cli: Cli) -> None:
    _, out, _ = cli(*QUICK, "--dry-run")
    assert [text for label, text in rows(out) if label == "GPU"] == [
        "no prediction: so small a step takes a GPU longer to start than to compute"
    ]


def test_seeds_are_counted(cli: Cli) -> None:
    _, out, _ = cli(*DIGITS[:3], "--seeds", "0-2", "--dry-run")
    assert dict(rows(out))["runs"] == "3, one for each seed; what follows is one of them"


@pytest.mark.parametrize("flag", [["--dry-run"], ["--dry-run", "true"], ["--dry-run=true"], ["--dry_run"]])
def test_it_ends_with_the_command_that_starts_the_run(flag: list[str], cli: Cli, tmp_path: Path) -> None:
    root = tmp_path / "of   mine"
    words = [*map(str, QUICK), "--session-root", str(root)]
    _, out, _ = cli(*words[:3], *flag, *words[3:])
    shown = out.partition("to start it:\n")[2].replace("\\\n", "")
    program, script, *rest = shlex.split(shown)
    assert (program, script) == ("python", "main.py")
    assert rest[2:] == words  # behind the sessions of the fixture
    assert not root.exists()
    if flag == ["--dry-run"]:
        assert cli(*rest)[0] == 0 and root.exists()
