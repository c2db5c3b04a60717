"""Start the processes of one run on this machine, as `torchrun` would."""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Sequence

from lib import distributed, runtime
from lib.errors import ENDS_WITH_PARENT, UserError, say
from lib.runtime import DeviceSettings


def processes(settings: DeviceSettings) -> int:
    """How many are to be started here; 1: none beside this one.

    Raises:
        UserError: `--processes` and `--gpus` do not go together.
    """
    gpus, asked = runtime.gpu_numbers(settings.gpus), settings.processes
    if gpus and asked not in (None, len(gpus)):
        raise UserError(f"--processes {asked}, and --gpus {settings.gpus} names {len(gpus)}; leave --processes out")
    return 1 if distributed.started() else asked or max(1, len(gpus))


def launch(command: Sequence[str], count: int) -> int:
    """Run a Python program, given with its words, in so many processes; if one fails, the others are ended.

    Returns:
        the exit status
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.disable(logging.CRITICAL)  # of this process; those that it starts speak for themselves
    # DistributedDataParallel remarks that a classifier which mostly waits has, for once, a gradient.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ[ENDS_WITH_PARENT] = "1"
    config = LaunchConfig(
        1, 1, count, run_id="run", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=0,
        signals_to_handle="SIGTERM,SIGINT",
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-u", *command)
    except SignalException as stopped:
        return 128 + int(stopped.sigval)  # the processes have said whether their state is saved
    except ChildFailedError as failed:
        # Of those that fail within a moment, one is the cause, and the others miss it.
        ends = {rank: failure.exitcode for rank, failure in failed.failures.items()}
        if 2 in ends.values():
            return 2
        killed = [(rank, status) for rank, status in ends.items() if status < 0]
        for rank, status in killed[:1]:
            name = signal.Signals(-status).name
            return say(f"error: rank {rank} was ended by {name}; --resume auto goes on from the last checkpoint", 1)
        return max(ends.values())
    return 0
