"""Checkpoints that a thread writes beside the training.

The thread hashes and writes bytes; it uses no tensors, no log and no random numbers of the run. So a loader process that is
forked meanwhile inherits no lock that it would wait for. The thread starts with the first checkpoint.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from concurrent import futures
from pathlib import Path
from typing import Any

from lib.checkpoints import checkpoint
from lib.errors import warn


class BackgroundWriter:
    """Writes checkpoints one after the other, while the training continues.

    At most one checkpoint is being written and one waits, as bytes in memory. After a failure nothing more is written.
    Leaving the context waits for the thread. A failure then is raised, or warned of where another error is under way.
    """

    def __init__(self) -> None:
        self._thread = futures.ThreadPoolExecutor(1, "checkpoints")
        self._pending: deque[futures.Future[None]] = deque()  # oldest first
        self._failed = False

    def __enter__(self) -> BackgroundWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._thread.shutdown()
        try:
            self.check()
        except Exception as failure:
            if error is None:
                raise
            warn(f"a checkpoint was not written: {failure}")

    def save(self, content: Mapping[str, Any], *paths: Path, afterwards: Callable[[], object] = lambda: None) -> None:
        """Write what a checkpoint holds now to each of the paths, in their order; waits while another one is waiting.

        Args:
            content: tensors and plain Python values, which may change once this returns.
            paths: of the files.
            afterwards: called in the thread when they are written.

        Raises:
            UserError: an earlier checkpoint could not be written.
        """
        self._wait(1)
        # Serialising takes little longer than a copy, and no tensor is left for the thread.
        body = checkpoint.serialize(content)
        self._pending.append(self._thread.submit(self._write, body, paths, afterwards))

    def _write(self, body: memoryview, paths: tuple[Path, ...], afterwards: Callable[[], object]) -> None:
        if self._failed:
            return
        try:
            checkpoint.write(body, *paths)
            afterwards()
        except BaseException:
            self._failed = True
            raise

    def check(self) -> None:
        """See that nothing has failed so far, without waiting.

        Raises:
            UserError: a checkpoint could not be written; the files hold what they held before.
        """
        while self._pending and self._pending[0].done():
            self._pending.popleft().result()

    def wait(self) -> None:
        """Until all checkpoints are on the disk.

        Raises:
            UserError: a checkpoint could not be written; the files hold what they held before.
        """
        self._wait(0)

    def _wait(self, most: int) -> None:
        while len(self._pending) > most:
            futures.wait([self._pending[0]])
            self.check()
