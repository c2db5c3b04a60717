"""Runs whose disk fails or that are killed at a chosen system call, each in a fork of a process that has loaded everything.

As a program, started with the library of faulty_disk.c preloaded: it reads a request a line, and answers with exit statuses.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
KILL = 0  # instead of an errno


@dataclass(frozen=True)
class End:
    """How a run ended."""

    status: int
    err: str
    calls: list[str]  # those that write below the watched folder, in their order


class FaultyDisk:
    """Runs command lines.

    Args:
        folder: for the files of this object.
        watched: the folder whose system calls are counted.
    """

    def __init__(self, folder: Path, watched: Path) -> None:
        self.folder = folder
        self.watched = watched
        library = folder / "faulty_disk.so"
        source = Path(__file__).with_suffix(".c")
        compiler = shutil.which("cc") or "cc"
        subprocess.run([compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"], check=True)
        environment = {**os.environ, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=environment,
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def close(self) -> None:
        self._server.communicate()

    def run(self, words: tuple[object, ...], number: int = 0, code: int = KILL) -> End:
        """Run a command line; the system call of that number fails with an errno, or the process is killed there."""
        assert self._server.stdin is not None and self._server.stdout is not None
        request = [list(map(str, words)), str(self.folder), str(self.watched), number, code]
        self._server.stdin.write(json.dumps(request) + "\n")
        self._server.stdin.flush()
        status = int(self._server.stdout.readline())
        calls = (self.folder / "calls").read_text().splitlines()
        return End(status, (self.folder / "err").read_text(), calls)


def _serve() -> None:
    import torch
    import torch.utils.tensorboard

    import main

    torch.set_num_threads(1)
    for line in sys.stdin:
        words, folder, watched, number, code = json.loads(line)
        child = os.fork()
        if not child:
            for stream, name in ((1, "out"), (2, "err")):
                os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
            ctypes.CDLL(None).faulty_disk(os.fsencode(watched), os.fsencode(f"{folder}/calls"), number, code)
            status = 1
            try:
                status = main.main(words)
            finally:
                if sys.exc_info()[0] is not None:
                    sys.excepthook(*sys.exc_info())
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(status)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
