"""Loader processes: what they give, and that whatever fails in or around one ends the run in one line."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import QUICK
from runs import METHODS, RUN, assert_same_run, finished, launch, loaders, only, processes

from lib.checkpoints import checkpoint
from lib.contracts import Request
from lib.errors import Interrupted, UserError
from lib.machine.interrupts import Interrupts
from lib.transforms.loader_processes import IN_FLIGHT, ImageBatch, Loader

BYTES = 2**22  # of a batch: more than a pipe holds
ENDLESS = (*QUICK, *RUN, "--max-epochs", 1000)


def prepare(request: Request) -> ImageBatch:
    """A batch that follows from its request, with the number of the process that made it."""
    views = [torch.full((len(request.index), BYTES), request.epoch % 256, dtype=torch.uint8)]
    return ImageBatch(request.index, views, {-1: str(os.getpid())})


def requests(count: int) -> Iterator[Request]:
    return (Request(torch.tensor([number]), (), number) for number in range(count))


def numbers(batches: Iterator[ImageBatch]) -> list[int]:
    found = []
    for batch in batches:
        number = int(batch.index)
        assert (batch.views[0] == number % 256).all()
        found.append(number)
    return found


@pytest.fixture
def loader() -> Iterator[Callable[..., Loader]]:
    """Makes loaders, and sees that they leave no process."""
    made = []

    def make(work: Callable[[Request], ImageBatch] = prepare, count: int = 2) -> Loader:
        made.append(Loader(work, count, pinned=False))
        return made[-1]

    yield make
    for each in made:
        workers = pids(each)
        each.close()
        assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def pids(loader: Loader) -> list[int]:
    return [worker.process.pid or 0 for worker in loader._workers]


def test_batches_come_in_order_from_processes_that_stay(loader: Any) -> None:
    started = loader()
    assert numbers(started.batches(requests(9))) == list(range(9))
    workers = pids(started)
    first = next(started.batches(requests(9)))  # what else was asked for is dropped
    assert int(first.index) == 0
    assert numbers(started.batches(requests(7))) == list(range(7))
    makers = {batch.skipped[-1] for batch in started.batches(requests(4))}
    assert pids(started) == workers and makers == set(map(str, workers))


def test_few_requests_are_taken_before_they_are_needed(loader: Any) -> None:
    taken = []

    def plan() -> Iterator[Request]:
        for request in requests(100):
            taken.append(request)
            yield request

    batches = loader().batches(plan())
    next(batches)
    next(batches)
    assert len(taken) == 2 * IN_FLIGHT + 2


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def crash(pid: int) -> None:
    os.kill(pid, signal.SIGSYS)


@pytest.mark.parametrize(("end", "told"), [(kill, "SIGKILL.*memory"), (crash, "SIGSYS")])
@pytest.mark.parametrize("victim", [0, 1])
@pytest.mark.parametrize("moment", [0.0, 0.3])  # s; after the longer one, each waits with a batch that nobody fetches
def test_a_killed_process_ends_the_run(end: Any, told: str, victim: int, moment: float, loader: Any) -> None:
    started = loader()
    batches = started.batches(requests(1000))
    next(batches)
    workers = pids(started)
    time.sleep(moment)
    end(workers[victim])
    with pytest.raises(UserError, match=f"(?s){told}.*--num-workers 0"):
        list(batches)
    assert not any(Path(f"/proc/{pid}").exists() for pid in workers)


def test_a_process_killed_between_two_epochs_ends_the_run(loader: Any) -> None:
    started = loader()
    list(started.batches(requests(4)))
    for pid in pids(started):
        kill(pid)
    with pytest.raises(UserError, match="SIGKILL"):
        list(started.batches(requests(4)))
    assert numbers(started.batches(requests(4))) == list(range(4)), "new processes take over after a failure"


def test_a_stopped_process_is_waited_for_while_the_others_live(loader: Any) -> None:
    started = loader()
    batches = started.batches(requests(8))
    next(batches)
    stopped, other = pids(started)
    os.kill(stopped, signal.SIGSTOP)
    wake = subprocess.Popen(["sh", "-c", f"sleep 2; kill -CONT {stopped}"])
    assert numbers(batches) == list(range(1, 8))
    wake.wait()

    batches = started.batches(requests(8))
    next(batches)
    os.kill(stopped, signal.SIGSTOP)
    kill(other)
    with pytest.raises(UserError, match="SIGKILL"):
        list(batches)


def broken(request: Request) -> ImageBatch:
    raise TypeError("no\nimage")


def unreadable(request: Request) -> ImageBatch:
    raise UserError("cannot read the picture 3.png")


def exhausted(request: Request) -> ImageBatch:
    raise MemoryError


def without_files(request: Request) -> ImageBatch:
    with open(os.devnull) as one:
        resource.setrlimit(resource.RLIMIT_NOFILE, (one.fileno(), one.fileno()))
    return ImageBatch(torch.tensor([len(open(os.devnull).read())]), [], {})


def leaving(request: Request) -> ImageBatch:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("work", "told"),
    [
        (broken, "data set failed .* 1 images .*: TypeError: no\nimage; --num-workers 0 shows where"),
        (unreadable, "^cannot read the picture 3.png$"),
        (exhausted, "not enough memory; take fewer --num-workers"),
        (without_files, "Too many open files; raise `ulimit -n`"),
        (leaving, "ended by itself, with status 3; --num-workers 0"),
    ],
)
def test_what_fails_in_a_process_is_told_by_the_run(work: Any, told: str, loader: Any, capfd: Any) -> None:
    with pytest.raises(UserError, match=f"(?s){told}"):
        list(loader(work).batches(requests(3)))
    assert not capfd.readouterr().err


def test_too_few_files_for_pipes(loader: Any) -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open(os.devnull) as free:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free.fileno() + 6, before[1]))  # enough for one process, or fewer
    try:
        with pytest.raises(UserError, match=r"cannot start 2 .*Too many open files; raise `ulimit -n`, or take --num-"):
            list(loader().batches(requests(3)))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_too_many_processes(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = os.fork
    left = [1]

    def limited() -> int:
        if not left:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        left.pop()
        return fork()

    monkeypatch.setattr("os.fork", limited)
    with pytest.raises(UserError, match="cannot start 2 .*raise `ulimit -u`"):
        list(loader().batches(requests(3)))


def test_no_shared_memory_semaphore_or_socket_is_used(loader: Any) -> None:
    before = set(os.listdir("/dev/shm"))
    started = loader()
    batches = started.batches(requests(8))
    next(batches)
    kinds = {os.readlink(f"/proc/{os.getpid()}/fd/{end.fileno()}").partition(":")[0]
             for worker in started._workers for end in (worker.requests, worker.replies)}  # fmt: skip
    assert kinds == {"pipe"} and set(os.listdir("/dev/shm")) <= before


def test_a_process_that_cannot_be_killed_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started = Loader(prepare, 1, pinned=False)
    batches = started.batches(requests(9))
    next(batches)
    (held,) = [worker.process for worker in started._workers]
    assert held in multiprocessing.active_children()
    os.kill(held.pid or 0, signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(type(held), "kill", lambda self: None)  # as in a read from a file system that hangs
        patch.setattr("lib.transforms.loader_processes.PATIENCE", 0.1)
        started.close()
    assert held not in multiprocessing.active_children(), "the interpreter would wait for it at exit"
    held.kill()
    held.join()


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.parametrize("stop", [False, True])
def test_processes_end_with_the_one_that_started_them(stop: bool) -> None:
    read, write = os.pipe()
    parent = os.fork()
    if not parent:
        try:
            started = Loader(prepare, 2, pinned=False)
            batches = started.batches(requests(100))
            next(batches)
            os.write(write, " ".join(map(str, pids(started))).encode())
            time.sleep(600)
        finally:
            os._exit(1)
    workers = list(map(int, os.read(read, 100).split()))
    assert len(workers) == 2
    if stop:
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    while not all(map(gone, workers)):
        time.sleep(0.05)


@pytest.mark.parametrize("swallows", [False, True])
def test_a_signal_ends_the_wait_for_a_batch(swallows: bool) -> None:
    def hung() -> Iterator[int]:
        yield 1
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(600)
        except Exception:  # such as a user's data set that takes every failure for an unreadable image
            assert swallows
            time.sleep(600)

    with pytest.raises(Interrupted), Interrupts(agree=lambda number: number) as interrupts:
        for batch in interrupts.watch(hung()):
            assert batch == 1


def test_a_signal_waits_for_the_end_of_a_step() -> None:
    done = []
    with pytest.raises(Interrupted), Interrupts(agree=lambda number: number) as interrupts:
        for batch in interrupts.watch(range(3)):
            os.kill(os.getpid(), signal.SIGTERM)
            done.append(batch)
    assert done == [0]


def running(root: Path, *words: object, steps: int = 3) -> tuple[subprocess.Popen[str], list[int]]:
    """A run that has taken some steps, and its loader processes."""

    def taken() -> int:
        return sum(log.read_text().count(", step ") for log in root.glob("*/log.txt"))

    before = taken()
    process = launch((*words, *loaders(2)), root)
    while taken() < before + steps:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    return process, [pid for pid, parent in processes(root).items() if parent == process.pid]


def test_a_run_ends_with_a_killed_process(tmp_path: Path) -> None:
    process, workers = running(tmp_path, *ENDLESS)
    kill(workers[0])
    _, err = process.communicate()
    assert process.returncode == 2 and err.splitlines()[-1].startswith("error: a loader process was killed"), err
    assert all(line.startswith(("warning: ", "error: ")) for line in err.splitlines()) and not processes(tmp_path)


def test_one_signal_ends_a_run_that_waits_for_ever(tmp_path: Path) -> None:
    process, workers = running(tmp_path, *ENDLESS)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(1)  # in which what was prepared is used up
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143 and err.splitlines()[-1] == "stopped by SIGTERM; the state is saved", err
    state = checkpoint.load(only(tmp_path) / "checkpoint" / "latest.ckpt")
    assert state["step"] == state["epoch"] * 8 + state["position"] and not processes(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_a_run_stopped_while_it_waits_loses_no_bit(method: str, tmp_path: Path) -> None:
    words = (*METHODS[method], *RUN, "--max-epochs", 12)
    straight = launch((*words, *loaders(2)), tmp_path / "straight")
    _, err = straight.communicate()
    assert straight.returncode == 0, err
    for steps in (1, 8, 20):
        process, workers = running(tmp_path / "stopped", *words, "--resume", "auto", steps=steps)
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate()
        assert process.returncode == 130 and "state is saved" in err, err
    last = launch((*words, *loaders(2), "--resume", "auto"), tmp_path / "stopped")
    _, err = last.communicate()
    assert last.returncode == 0, err
    assert_same_run(only(tmp_path / "straight"), finished(tmp_path / "stopped"))


@pytest.mark.slow
@pytest.mark.parametrize("limit", [8, 12, 16, 20, 24, 32, 64, 128])
def test_runs_with_few_files(limit: int, tmp_path: Path) -> None:
    words = (*QUICK, *loaders(2))
    process = launch(words, tmp_path, before=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)))
    _, err = process.communicate()
    assert process.returncode in (0, 2) and "Traceback" not in err, err
    assert process.returncode == 0 or err.splitlines()[-1].startswith("error: "), err
    assert limit < 24 or process.returncode == 0, err


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount")
@pytest.mark.parametrize("options", ["size=4k", "ro"])
def test_runs_without_shared_memory(options: str, tmp_path: Path) -> None:
    mount = f'mount -t tmpfs -o {options} tmpfs /dev/shm && exec "$@"'
    process = launch((*QUICK, *loaders(2)), tmp_path, within=("unshare", "-m", "sh", "-c", mount, "sh"))
    _, err = process.communicate()
    assert process.returncode == 0, err


@pytest.mark.slow
def test_one_signal_ends_ranks_that_wait_for_ever(tmp_path: Path) -> None:
    process, _ = running(tmp_path, *ENDLESS, "--processes", 2, "--threads", 1)
    parents = processes(tmp_path)
    workers = [pid for pid, parent in parents.items() if parents.get(parent) == process.pid]
    assert len(workers) == 4
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 143 and err.splitlines()[-1].startswith("stopped by SIGTERM; nothing was saved"), err
    assert not processes(tmp_path)
