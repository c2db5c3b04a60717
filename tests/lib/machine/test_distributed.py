"""Several processes compute what one does, and end as one."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ranks
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import QUICK, resolve
from runs import IMC, same

import main
from lib.errors import RunStopped, UserError
from lib.machine import devices, processes
from lib.machine.devices import DeviceSettings


@pytest.fixture(scope="module")
def alone() -> dict[str, dict[str, torch.Tensor]]:
    return ranks.everything()


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_ranks_agree_with_one_process(world: int, alone: dict[str, dict[str, torch.Tensor]], tmp_path: Path) -> None:
    first, *others = on_ranks(ranks.work, world, tmp_path)
    for other in others:
        assert same(first, other)
    tolerance = {"losses": 1e-12, "norms": 1e-12, "steps": 1e-9, "labelled_on_one": 1e-9, "heads_in_turn": 1e-9}
    for function, found in first.items():
        assert len(found) >= len(alone[function]) >= 5
        for name, value in found.items():
            expected = alone[function][name if function == "steps" else "0/" + name.partition("/")[2]]
            close = torch.allclose(
                value.double(), expected.double(), rtol=tolerance[function], atol=tolerance[function]
            )
            assert close, name


@pytest.mark.slow
@pytest.mark.parametrize("synchronised", ["true", "false"])
@pytest.mark.parametrize("method", ["pica", "imc_swav"])
def test_a_step_has_one_collective_beyond_gathers_and_gradients(
    method: str, synchronised: str, collectives: list[dict[tuple[str, str], dict[str, int]]]
) -> None:
    for rank in collectives:
        calls = rank[method, synchronised]
        gathers = calls.pop("forward")
        backwards = calls.pop("backward")
        assert gathers > 0 and backwards > 0
        assert calls.pop("all_gather") == gathers + 1, "the batch and a signal"
        assert calls.pop("all_reduce") == backwards + 1, "one bucket of gradients"
        assert calls.pop("broadcast", 0) == (0 if synchronised == "true" else 2), "buffers, of two data types"
        assert not calls


@pytest.fixture(scope="module")
def collectives(tmp_path_factory: pytest.TempPathFactory) -> list[dict[tuple[str, str], dict[str, int]]]:
    return on_ranks(ranks.count_collectives, 2, tmp_path_factory.mktemp("collectives"))


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_one_step(tmp_path: Path) -> None:
    assert on_ranks(ranks.interrupt_one, 2, tmp_path) == [(3, 3, signal.SIGINT)] * 2


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="threads are counted in /proc")
def test_nothing_of_an_exchange_outlives_its_group(tmp_path: Path) -> None:
    for freed, before, during, after in on_ranks(ranks.leave_with_a_cycle, 2, tmp_path):
        assert freed
        assert len(during) > len(before) == len(after), after


def on_ranks(work: Callable[[int, int, Path], None], world: int, folder: Path) -> list[Any]:
    """What each rank saves."""
    mp.start_processes(work, (world, folder), nprocs=world, start_method="spawn")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def test_ranks_that_are_started_again_find_nothing_of_the_dead() -> None:
    held = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    for start, late in enumerate((0, 0, 1, 2)):

        def joined(rank: int, start: int = start, late: int = late) -> tuple[bool, bytes]:
            own = dist.TCPStore("localhost", held.port, timeout=timedelta(seconds=20))
            time.sleep(0.3 * (rank == late))
            store = processes._of_this_start(own, rank, 3)
            left = store.check([f"address/{other}" for other in range(3)])
            store.add("ready", 1)
            while store.add("ready", 0) < 3:
                time.sleep(0.01)
            store.set(f"address/{rank}", f"{start}")
            return left, b"".join(store.get(f"address/{other}") for other in range(3))

        with ThreadPoolExecutor(3) as pool:
            assert list(pool.map(joined, range(3))) == [(False, f"{start}".encode() * 3)] * 3


def test_ranks_that_are_not_found_are_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", timedelta(seconds=0.2))
    held = dist.HashStore()
    held.set("asks/1", "the word of a dead rank")
    with pytest.raises(dist.DistStoreError, match=r"no word of \[1\]"):
        processes._of_this_start(held, 0, 2)
    free = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False).port  # again, as it is closed at once
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "localhost", "MASTER_PORT": free}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(RunStopped, match="rank 1 did not find the others: .*; start all again"):
        with processes.joined(DeviceSettings()):
            pass


def test_a_wait_for_ranks_is_announced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(processes, "PATIENCE", timedelta(seconds=1))
    monkeypatch.setattr(processes, "SILENCE", 0.1)
    free = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False).port
    launched(monkeypatch, RANK=0, WORLD_SIZE=2, MASTER_ADDR="127.0.0.1", MASTER_PORT=free)
    with pytest.raises(RunStopped, match="rank 0 did not find the others"):
        with processes.joined(DeviceSettings()):
            pass
    err = capsys.readouterr().err
    assert err.startswith("warning: rank 0 waits up to ") and "unset WORLD_SIZE" in err and err.count("\n") == 1


def launched(monkeypatch: pytest.MonkeyPatch, **variables: object) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


PLACE = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE 2, and no MASTER_ADDR, MASTER_PORT; unset WORLD_SIZE and RANK"),
        ({"WORLD_SIZE": "2", "RANK": "", **PLACE}, "WORLD_SIZE 2, and no RANK; unset"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a whole number"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2", "RANK": "2", **PLACE}, "RANK is 2, and there are 2 processes"),
        ({"WORLD_SIZE": "2", "RANK": "-1", **PLACE}, "RANK is '-1'"),
        ({"RANK": "1"}, "RANK is 1, and there are 1 processes"),
        ({"WORLD_SIZE": "2", "RANK": "0", **PLACE, "MASTER_PORT": "99999"}, "MASTER_PORT is '99999'"),
        ({"LOCAL_WORLD_SIZE": "0"}, "LOCAL_WORLD_SIZE is '0'"),
        ({"LOCAL_RANK": "a\nb"}, r"LOCAL_RANK is 'a\\nb'"),
        ({"LOCAL_RANK": "1"}, "LOCAL_RANK is 1, and there are 1"),
    ],
)
def test_variables_that_another_job_left_are_named(
    variables: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched(monkeypatch, **variables)
    with pytest.raises(UserError, match=message) as raised:
        with processes.joined(DeviceSettings()):
            pass
    assert "\n" not in str(raised.value)


def test_empty_variables_are_as_unset_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS")
    launched(monkeypatch, **dict.fromkeys(names, ""))
    assert not processes.started()
    assert devices.local_rank() == 0 and devices.own_cores() == devices.cores()
    assert devices.threads(DeviceSettings()) is None


def test_threads_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for text, threads in (("3", 3), ("4,2", None)):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        assert devices.threads(DeviceSettings()) == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert devices.threads(DeviceSettings(threads=2)) == 2
    for text in ("many", "0"):
        monkeypatch.setenv("OMP_NUM_THREADS", text)
        with pytest.raises(UserError, match=f"OMP_NUM_THREADS is '{text}'"):
            devices.threads(DeviceSettings())


@pytest.mark.parametrize("world", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("size", [0, 1, 3, 256, 257])
def test_shares_are_even_and_in_order(world: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "world", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(processes, "rank", lambda rank=rank: rank)
        parts.append(processes.share(np.arange(size)))
    assert np.concatenate(parts).tolist() == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
    ("words", "fits"),
    [
        ((*QUICK, "--batch-size", 256), True),  # and 131 in the last
        ((*QUICK, "--batch-size", 224), False),  # and 3
        ((*IMC, "--batch-size", 3), False),
        ((*IMC, "--batch-size", 4), True),
    ],
)
def test_without_synchronisation_a_part_needs_two_pictures(
    words: tuple[object, ...], fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = resolve(*words, "--sync-batchnorm", "false")
    monkeypatch.setattr(processes, "world", lambda: 2)
    monkeypatch.setattr(processes, "one_first", nullcontext)
    monkeypatch.setattr(processes, "from_first", lambda make: make())
    with nullcontext() if fits else pytest.raises(UserError, match="--sync-batchnorm false: a batch of 3 pictures"):
        main.build(settings)
    processes.check_parts(1, synchronised=True)
