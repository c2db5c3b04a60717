"""Mistakes: exit status 2, one line, nothing half-written."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import QUICK, ROOT, picture

import main
from lib.checkpoints import checkpoint
from lib.errors import ENDS_WITH_PARENT, Interrupted, check_surroundings, exit_status, heeded_signals, prepare_streams
from lib.machine.interrupts import Interrupts

Cli = Callable[..., tuple[int, str, str]]


def refused(result: tuple[int, str, str], *parts: str) -> None:
    status, _, err = result
    assert status == 2
    assert err.startswith("error: ") and err.count("\n") == 1 and "Traceback" not in err
    for part in parts:
        assert part in err


def folder(*words: object) -> tuple[object, ...]:
    return ("--cfgs", ROOT / "configs/base.yaml", ROOT / "configs/image_folder.yaml", "--network", "convnet", *words)


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> object:
    yield
    assert not list((tmp_path / "sessions").glob("*"))


def test_mistakes_in_settings(cli: Cli, tmp_path: Path) -> None:
    refused(cli("--cfgs", tmp_path / "absent.yaml"), "absent.yaml", "No such file")
    for content, part in (("- a", "not a mapping"), ("batch: 3", "unknown setting"), ("batch_size: x", "not a number")):
        (tmp_path / "bad.yaml").write_text(content)
        refused(cli("--cfgs", tmp_path / "bad.yaml"), "bad.yaml", part)
    refused(cli(*QUICK, "--dataset", "didgits"), "unknown data set 'didgits'", "did you mean 'digits'")
    refused(cli(*QUICK, "--max-epoch", "1"), "did you mean '--max-epochs'")
    refused(cli(*QUICK, "--num-clusters", "9"), "contradicts net_heads")
    refused(cli(*QUICK, "--tfm-means", "0.1", "0.2"), "tfm_means has 2 values", "1 channels")
    refused(cli(*QUICK, "--lr-policy", "multistep"), "--lr-schedule")
    refused(cli(*QUICK, "--optimizer", "sgd", "--optim-nesterov", "--optim-momentum", "0"), "sgd refuses", "momentum")
    refused(cli(*QUICK, "--train-splits", "train", "test", "train+test"), "train_splits names 3 sets", "2 heads")


def test_mistakes_in_data(cli: Cli, tmp_path: Path) -> None:
    refused(cli(*folder("--data-root", tmp_path / "absent")), "absent", "--data-root")
    (tmp_path / "empty").mkdir()
    refused(cli(*folder("--data-root", tmp_path / "empty")), "empty", "looked for")
    picture(tmp_path / "text" / "a.png").write_text("not a picture")
    refused(cli(*folder("--data-root", tmp_path / "text")), "a.png", "no image")
    for i in range(9):
        whole = picture(tmp_path / "nine" / f"{i}.png", seed=i)
    nine = folder("--data-root", tmp_path / "nine", "--num-clusters", "3", "--num-workers", "0")
    refused(cli(*nine, "--download"), "--download", "leave it out")
    refused(cli(*nine, "--num-clusters", "10"), "9 pictures do not make 10 clusters")
    refused(cli(*nine, "--batch-size", "8", "--tfm-size", "4"), "a single picture of 4 px", "batch_size")
    whole.write_bytes(whole.read_bytes()[:200])  # its header is right
    for seeds in ((), ("--seeds", "0-1")):
        refused(cli(*nine, *seeds), "8.png", "mend or remove it")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_gpu_that_is_not_there(cli: Cli) -> None:
    refused(cli(*QUICK, "--gpus", "0"), "--gpus 0", "leave --gpus empty")
    refused(cli(*QUICK, "--gpus", "first"), "--gpus first")


def test_mistakes_in_sessions(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    refused(cli(*QUICK, "--session-root", tmp_path / "file" / "under"), "cannot make a session")
    refused(cli(*QUICK, "--session", "../outside"), "no name of a folder")
    refused(cli(*QUICK, "--session", "a\nb"), "no name of a folder")
    refused(cli(*QUICK, "--session-root", "a\0b"), "--session-root", "NUL")
    refused(cli(*QUICK, "--session-root", tmp_path / "file"), "file: it is no folder; choose another --session-root")
    (tmp_path / "link").symlink_to("absent")
    refused(cli(*QUICK, "--session-root", tmp_path / "link"), "link: it is a link to nothing")
    prepare_streams()  # as the program does: stderr shows any name
    not_utf8 = tmp_path / os.fsdecode(b"\xff")
    refused(cli(*QUICK, "--session-root", not_utf8), "TensorBoard cannot write to", "\\udcff, ", "--log-tfb false")
    assert not not_utf8.exists()


def test_too_large_a_network(cli: Cli) -> None:
    refused(cli(*QUICK, "--net-width", "1000000", "--dry-run"), "not enough memory", "--dry-run")


@pytest.mark.parametrize("name", ["--net-width", "--num-clusters", "--net-heads", "--batch-size", "--max-epochs"])
def test_too_large_a_number(name: str, cli: Cli) -> None:
    refused(cli(*QUICK, name, "9" * 22), name, "above 2147483647")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("Storage size calculation overflowed with sizes=[1]")])
def test_a_lack_of_memory_is_one_line(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    @exit_status
    def fails(argv: Sequence[str]) -> int:
        raise error

    refused((fails([]), "", capsys.readouterr().err), "not enough memory")


@pytest.mark.parametrize("words", [("--network",), ("--dataset",), ("--data-root",), ("--cfgs",), ()])
def test_a_value_without_end_is_shortened(words: Sequence[str], cli: Cli) -> None:
    lead = () if words == ("--cfgs",) else folder()
    result = cli(*lead, *words, "--" * (not words) + "a" * 100_000)
    refused(result, "a…a")
    assert len(result[2]) < 1000


def test_an_unwritable_session_root(tmp_path: Path) -> None:
    command = [sys.executable, "main.py", *map(str, QUICK), "--session-root", "/proc/sessions"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (
        done.returncode == 2
        and done.stderr.count("\n") == 1
        and "cannot make a session in /proc/sessions" in done.stderr
    )


def earlier(cli: Cli, tmp_path: Path) -> Path:
    """A checkpoint in a session outside of the watched root."""
    words = [*map(str, QUICK), "--max-epochs", "0", "--session-root", str(tmp_path / "earlier"), "--session", "a"]
    assert main.main(words) == 0
    return tmp_path / "earlier" / "a" / "checkpoint" / "latest.ckpt"


def test_mistakes_in_checkpoints(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = earlier(cli, tmp_path)
    capsys.readouterr()
    refused(cli("--evaluate", tmp_path / "absent.ckpt"), "absent.ckpt", "check the path")
    whole = path.read_bytes()
    bad = tmp_path / "bad.ckpt"
    bad.write_bytes(whole[:-100])
    refused(cli("--evaluate", bad), "bad.ckpt", "cut short")
    bad.write_bytes(whole[:2000] + bytes([whole[2000] ^ 4]) + whole[2001:])
    refused(cli("--evaluate", bad), "bad.ckpt", "damaged")
    refused(cli("--evaluate", path, "--net-width", "5"), "--net-width 5 contradicts the checkpoint", "net_width 4")
    refused(cli("--evaluate", path, "--network", "resnet18"), "contradicts the checkpoint")
    refused(cli("--evaluate", path, "--seeds", "0-1"), "--seeds")
    state = checkpoint.load(path)
    state["method"]["network.layers.0.weight"] = torch.zeros(5, 1, 3, 3)
    checkpoint.save({name: value for name, value in state.items() if name != "format"}, bad)
    refused(cli("--evaluate", bad), "does not fit this network", "network.layers.0.weight is (5, 1, 3, 3)")
    state = checkpoint.load(path)
    state["method"]["heads.0.bias"][0] = float("nan")
    checkpoint.save(state, bad)
    refused(cli("--evaluate", bad), "not finite", "heads.0.bias")
    checkpoint.save({"weights": 1}, bad)
    refused(cli("--evaluate", bad), "bad.ckpt")


def test_an_existing_session_is_not_overwritten(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    earlier(cli, tmp_path)
    capsys.readouterr()
    before = sorted((tmp_path / "earlier").rglob("*"))
    refused(cli(*QUICK, "--session", "a", "--session-root", tmp_path / "earlier"), "earlier/a exists", "--session")
    assert sorted((tmp_path / "earlier").rglob("*")) == before


def test_help_and_list(cli: Cli) -> None:
    assert main.main([]) == 0
    for words in (("--help",), ("-h",)):
        status, out, err = cli(*words)
        assert status == 0 and not err and "--cfgs" in out
    status, out, _ = cli("--list")
    assert status == 0 and "image_folder" in out


def test_notes_are_shown_in_every_mode(cli: Cli, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = "warning: net_cout: accepted, and without effect"
    path = earlier(cli, tmp_path)
    capsys.readouterr()
    train = (*QUICK, "--max-epochs", 0)
    for words in ((*train, "--dry-run"), (*train, "--debug"), (*QUICK, "--help"), ("--evaluate", path, "--debug")):
        status, _, err = cli(*words, "--net-cout", 10)
        assert status == 0 and err.splitlines().count(note) == 1, err


def run_main(words: Sequence[object], **environment: str) -> subprocess.CompletedProcess[str]:
    """A command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "main.py", *map(str, words)], cwd=ROOT, capture_output=True, encoding="latin-1", check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@pytest.mark.parametrize("encoding", ["ascii", pytest.param("latin-1", marks=pytest.mark.slow)])
def test_a_console_without_unicode_gets_the_help(encoding: str) -> None:
    done = run_main(["--help", "all", "--tfm-ratio", "(3/4, 4/3)"], PYTHONIOENCODING=encoding)
    assert done.returncode == 0 and not done.stderr
    assert r"\u2264 0.5)" in done.stdout and ("3\xd73" in done.stdout) == (encoding == "latin-1")


def test_closed_streams_end_nothing(tmp_path: Path) -> None:
    words = [*map(str, QUICK), "--max-epochs", "0", "--session-root", str(tmp_path / "kept"), "--session", "a"]
    command = ["sh", "-c", 'exec "$0" "$@" >&- 2>&-', sys.executable, "main.py", *words]
    assert subprocess.run(command, cwd=ROOT, check=False).returncode == 0
    assert "ACC" in (tmp_path / "kept" / "a" / "log.txt").read_text()


READ_ONLY = os.devnull, os.O_RDONLY
FULL = "/dev/full", os.O_WRONLY


@pytest.mark.parametrize("stream", [READ_ONLY, FULL], ids=["read-only", "full"])
@pytest.mark.parametrize("names", [("stdout",), ("stdout", "stderr")])
def test_a_console_that_cannot_be_written_ends_no_run(
    names: tuple[str, ...], stream: tuple[str, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for name in names:
        monkeypatch.setattr(sys, name, open(os.open(*stream), "w"))  # noqa: SIM115
    words = ("--max-epochs", "0", "--net-cout", "10", "--session-root", str(tmp_path / "kept"), "--session", "a")
    assert main.main([*map(str, QUICK), *words]) == 0
    log = (tmp_path / "kept" / "a" / "log.txt").read_text()
    assert "ACC" in log and "warning: net_cout" in log
    if names == ("stdout",):
        assert "warning: stdout cannot be written: " in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--list"], ["--help"], [*map(str, QUICK), "--max-epochs", "0", "--dry-run"]])
def test_a_full_stdout_is_named(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdout", open("/dev/full", "w"))  # noqa: SIM115
    assert main.main(words) == 2
    assert capsys.readouterr().err.startswith("error: cannot write to stdout: No space left on device; ")


def test_a_tilde_without_a_home_is_named(cli: Cli) -> None:
    for name in ("data-root", "session-root", "cache", "evaluate", "net-weights"):
        refused(cli(*QUICK, f"--{name}", "~no-such-user/x"), f"--{name}", "~no-such-user/x", "no home directory")


@pytest.mark.slow
def test_a_user_without_a_home_runs(tmp_path: Path) -> None:
    user = ["unshare", "-U", "--map-user=12345", "--map-group=12345"]
    if subprocess.run([*user, "true"], capture_output=True, check=False).returncode:
        pytest.skip("user namespaces are not permitted")
    words = [*map(str, QUICK), "--session-root", str(tmp_path / "kept")]
    command = [*user, "env", "-u", "HOME", "-u", "XDG_CACHE_HOME", sys.executable, "main.py", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "warning: nothing is kept between runs: there is no home directory; --cache" in done.stderr


def test_a_signal_that_was_ignored_at_the_start_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts(agree=lambda number: number) as interrupts:
            signal.raise_signal(signal.SIGHUP)
            interrupts.check()
    finally:
        signal.signal(signal.SIGHUP, before)
    assert signal.SIGHUP in heeded_signals()


def test_a_launcher_that_is_killed_sends_sigterm_more_than_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDS_WITH_PARENT, "1")
    with Interrupts(agree=lambda number: number) as interrupts:
        for _ in range(3):  # one for each of its threads
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted) as caught:
            interrupts.check()
        assert not caught.value.midway, "the state is saved"
        with pytest.raises(Interrupted) as caught:
            signal.raise_signal(signal.SIGINT)
        assert caught.value.midway, "a second wish does not wait"


INTERRUPTIONS = [
    (signal.SIGTERM, 143),
    *(pytest.param(*row, marks=pytest.mark.slow) for row in ((signal.SIGINT, 130), (signal.SIGHUP, 129))),
]


@pytest.mark.parametrize(("number", "status"), INTERRUPTIONS)
def test_an_interrupted_run_saves_its_state(number: signal.Signals, status: int, tmp_path: Path) -> None:
    process, log = begin(tmp_path)
    process.send_signal(number)
    if number == signal.SIGHUP:
        process.send_signal(number)  # a closed terminal and its shell send one each
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert err.splitlines()[-1] == f"stopped by {number.name}; the state is saved" and "Traceback" not in err
    state = checkpoint.load(log.parent / "checkpoint" / "latest.ckpt")
    assert state["step"] == state["epoch"] * 8 + state["position"] >= 3


@pytest.mark.slow
def test_under_nohup_a_closed_terminal_changes_nothing(tmp_path: Path) -> None:
    process, log = begin(tmp_path, "nohup")
    process.send_signal(signal.SIGHUP)
    lines = log.read_text().count("\n")
    until(lambda: log.read_text().count("\n") > lines + 20)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert "SIGTERM; the state is saved" in process.communicate()[1]


def until(happened: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not happened() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert happened()


def begin(tmp_path: Path, *before: str) -> tuple[subprocess.Popen[str], Path]:
    """A long run that has taken three steps, and its log; `before`: the command that runs it."""
    words = [*map(str, QUICK), "--max-epochs", "1000", "--tfm-backend", "pil", "--num-workers", "1", "--display-freq", "1",
             "--session-root", str(tmp_path / "kept"), "--session", "a"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*before, sys.executable, "main.py", *words], cwd=ROOT, env=environment,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)  # fmt: skip
    log = tmp_path / "kept" / "a" / "log.txt"
    until(lambda: log.exists() and "step 3/8" in log.read_text())
    return process, log


def test_without_torch_a_line_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so: cannot open')")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "main.py", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "error: PyTorch cannot be loaded: libtorch.so: cannot open; pip install -r requirements.txt"
    )


def started_with(tmp_path: Path, torch_file: str, *flags: str, **environment: str) -> str:
    """What the program says on stderr where this is PyTorch."""
    (tmp_path / "torch.py").write_text(torch_file)
    command = [sys.executable, *flags, str(ROOT / "main.py"), "--list"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path), **environment},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 2
    return done.stderr


def test_environment_variables_that_libraries_reject_are_named(tmp_path: Path) -> None:
    rejects = "raise ValueError('\\nInvalid log settings: bogus\\n\\nValid settings: all')"
    said = started_with(tmp_path, rejects, TORCH_LOGS="bogus")
    assert said.startswith("error: PyTorch or tqdm cannot be loaded: ValueError: Invalid log settings: bogus; check")
    assert "TORCH_LOGS" in said and said.count("\n") == 1
    for name in ("TQDM_NCOLS", "TQDM_MININTERVAL"):
        said = started_with(tmp_path, "", **{name: "abc"})
        assert said.count("\n") == 1 and "'abc'" in said
        assert "; check the environment variables " in said and name in said


def test_the_program_finds_itself_where_python_does_not_look_beside_it(tmp_path: Path) -> None:
    said = started_with(tmp_path, "", "-I", "-S")  # -S: without installed packages, which this one may be among
    assert said.startswith("error: PyTorch cannot be loaded: No module named 'torch'; pip install")


def test_threads_of_the_environment_are_checked(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "0")
    refused(cli(*QUICK), "OMP_NUM_THREADS is '0'", "from 1 to")


def test_a_machine_without_threads_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    def program(argv: object) -> None:
        raise RuntimeError("can't start new thread")

    assert exit_status(program)([]) == 2
    assert capsys.readouterr().err == "error: no thread can be started; raise the limit of processes (ulimit -u)\n"


def test_a_folder_that_is_gone_is_said(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    command = 'cd gone && rmdir ../gone && exec "$0" "$1" --list'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable, str(ROOT / "main.py")], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: the current folder cannot be used: No such file or directory; start in a folder that exists\n"
    )


def test_a_machine_without_a_temporary_folder_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/proc"])
    with pytest.raises(SystemExit, match="2"):
        check_surroundings()
    said = capsys.readouterr().err
    assert "['/proc']" in said and said.endswith("; let TMPDIR name a folder that can be written\n")
