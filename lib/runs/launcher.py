"""Start the processes of one run on this machine, as `torchrun` would."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence

from lib.errors import ENDS_WITH_PARENT, UserError, advice, heeded_signals, say
from lib.machine import devices, processes
from lib.machine.devices import DeviceSettings

LOOPBACK = "127.0.0.1"  # a number, because `localhost` is a name that may not resolve
REACHED = 10.0  # s, in which this machine reaches itself
POLL = 0.1  # s, between two looks at the processes


def number_of_processes(settings: DeviceSettings) -> int:
    """How many are to be started here; 1: none beside this one.

    Raises:
        UserError: `--processes` and `--gpus` do not go together.
    """
    gpus = devices.gpu_numbers(settings.gpus)
    asked = settings.processes
    if gpus and asked not in (None, len(gpus)):
        raise UserError(f"--processes {asked}, and --gpus {settings.gpus} names {len(gpus)}; leave --processes out")
    return 1 if processes.started() else asked or max(1, len(gpus))


def launch(command: Sequence[str], count: int) -> int:
    """Run a Python program, given with its words, in so many processes; if one fails, the others are ended.

    They meet on the loopback address, so that the machine's own name need not resolve.

    Returns:
        the exit status
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
    from torch.distributed.elastic.multiprocessing.api import SignalException

    logging.disable(logging.CRITICAL)  # of this process; those that it starts speak for themselves
    os.environ["TORCHELASTIC_SIGNALS_TO_HANDLE"] = ",".join(number.name for number in heeded_signals())
    try:
        with socket.create_server((LOOPBACK, 0)) as server:  # the store itself would try for minutes
            socket.create_connection(server.getsockname(), REACHED).close()
        store = TCPStore(LOOPBACK, 0, is_master=True, wait_for_workers=False)
    except (OSError, RuntimeError) as error:  # torch's own errors of sockets are RuntimeErrors
        problem = str(error).splitlines()[0]
        raise UserError(f"{count} processes cannot meet on this machine: {problem}; leave --processes out") from error
    shared = {
        "WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": LOOPBACK, "MASTER_PORT": str(store.port),
        "TORCHELASTIC_USE_AGENT_STORE": "True", "GLOO_SOCKET_IFNAME": _loopback_interface(), ENDS_WITH_PARENT: "1",
        # PyTorch remarks that a rank which failed did not leave its group.
        "TORCH_CPP_LOG_LEVEL": os.environ.get("TORCH_CPP_LOG_LEVEL", "ERROR"),
    }  # fmt: skip
    ranks = range(count)
    running = None
    try:
        running = start_processes(
            "rank", sys.executable, {rank: ("-u", *command) for rank in ranks},
            {rank: {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in ranks}, DefaultLogsSpecs(os.devnull),
        )  # fmt: skip
        ended = running.wait(period=POLL)
    except SignalException as stopped:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal and its shell send one each
        if running is not None:
            running.close(stopped.sigval)
        return 128 + int(stopped.sigval)  # the processes have said whether their state is saved
    except OSError as error:
        problem = f"{count} processes cannot be started: {error.strerror}"
        place = f" ({error.filename})" if error.filename else ""
        raise UserError(f"{problem}{place}; {advice(error)}, or leave --processes out") from error
    assert ended is not None  # it waits without end
    # Of those that fail within a moment, one is the cause, and the others miss it.
    ends = {rank: failure.exitcode for rank, failure in ended.failures.items()}
    if 2 in ends.values():
        return 2
    if 1 in ends.values():
        return 1  # that rank has said which other one it lost
    # What is left when one rank has ended, the launcher ends by SIGTERM.
    causes = {rank: status for rank, status in ends.items() if status != -signal.SIGTERM} or ends
    killed = [(rank, status) for rank, status in causes.items() if status < 0]
    for rank, status in killed[:1]:
        if not processes.none_spoke(store):
            return 1  # a rank that lost it has said so, and was ended after that
        name = signal.Signals(-status).name
        return say(f"error: rank {rank} was ended by {name}; --resume auto goes on from the last checkpoint", 1)
    return max(causes.values(), default=0)


def _loopback_interface() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")
