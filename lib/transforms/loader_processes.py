"""Processes that prepare image batches beside the training process.

Pipes are all that connects them. Shared memory, semaphores and sockets may be scarce or forbidden in a
container, and a process that is killed while it holds a lock leaves the others waiting for ever.
What is pickled comes from this program's own forks, over pipes that no other process has.
"""

from __future__ import annotations

import errno
import fcntl
import itertools
import multiprocessing
import os
import pickle
import signal
import struct
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from multiprocessing import connection
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from queue import SimpleQueue
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from lib.contracts import Request
from lib.errors import SIGNALS, RunStopped, UserError, end_with_parent
from lib.machine import random_seeds

IN_FLIGHT = 2  # batches of each process: one is ready while the next is prepared
PIPE_BYTES = 2**20  # of each pipe for results, where the system allows it
POLL = 1.0  # s, between two looks at whether all processes live
PATIENCE = 5.0  # s, with a killed process, which the system may hold in a read
WITHOUT = "or take --num-workers 0"
_LIMITS = {
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "close other programs",
    errno.EAGAIN: "raise `ulimit -u` or the container's limit of processes",
    errno.ENOMEM: "free some memory",
}


@dataclass(frozen=True)
class ImageBatch:
    """What became of a request."""

    index: Tensor  # (N,) positions of the images that could be read
    views: list[Tensor]  # for each recipe (N, C, H, W), 8-bit
    skipped: dict[int, str]  # positions of the others, and why


Prepare = Callable[[Request], ImageBatch]
_Reply = ImageBatch | str  # or why it failed


@dataclass(eq=False)
class _Worker:
    process: BaseProcess
    requests: Connection
    replies: Connection
    pending: deque[int] = field(default_factory=deque)  # numbers of the requests that it has yet to answer


class Loader:
    """Loader processes, which start with the first request and stay until `close`.

    Args:
        prepare: what a process does.
        count: how many processes.
        pinned: put the views into pinned memory.
    """

    def __init__(self, prepare: Prepare, count: int, pinned: bool) -> None:
        self._prepare = prepare
        self._count = count
        self._pinned = pinned
        self._numbers = itertools.count()
        self._workers: list[_Worker] = []
        # Also without `close`, and before multiprocessing waits for its processes at exit.
        Finalize(self, _end, args=(self._workers,), exitpriority=0)

    def batches(self, requests: Iterable[Request]) -> Iterator[ImageBatch]:
        """What becomes of each request, in their order. A process that is slow is waited for without limit.

        A new call drops what an earlier one has not fetched.

        Raises:
            UserError: an image cannot be read, or a process failed, was killed or could not be started.
        """
        try:
            if not self._workers:
                self._start()
            sent = self._send(requests)
            waiting = deque(itertools.islice(sent, IN_FLIGHT * self._count))
            while waiting:
                batch = self._fetch(*waiting.popleft())
                waiting.extend(itertools.islice(sent, 1))
                yield batch
        except GeneratorExit:  # the caller needs no more of them
            raise
        except BaseException:
            self.close()  # half a message may be in a pipe
            raise

    def close(self) -> None:
        """Kill the processes, which hold nothing that could be lost."""
        _end(self._workers)

    def _start(self) -> None:
        # Newer Pythons would pickle the data set by default, which a user's may not bear.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
        try:
            with _held_back():
                for number in range(self._count):
                    self._add_worker(context, number)
        except OSError as error:
            advice = _LIMITS.get(error.errno or 0, "look at the limits of this machine")
            count = f"{self._count} loader processes"
            raise UserError(f"cannot start {count}: {error.strerror}; {advice}, {WITHOUT}") from error

    def _add_worker(self, context: Any, number: int) -> None:
        their_requests, requests = context.Pipe(duplex=False)
        replies, their_replies = context.Pipe(duplex=False)
        # A process inherits the ends of earlier pipes, which would stay open when this process is gone.
        others = [end for worker in self._workers for end in (worker.requests, worker.replies)] + [requests, replies]
        process = context.Process(
            target=_serve, args=(self._prepare, number, their_requests, their_replies, others), daemon=True
        )
        os.set_blocking(replies.fileno(), False)
        _widen(replies)
        self._workers.append(_Worker(process, requests, replies))  # first, as a signal may interrupt the start
        process.start()
        their_requests.close()
        their_replies.close()

    def _send(self, requests: Iterable[Request]) -> Iterator[tuple[_Worker, int]]:
        """Hand the requests to the processes in turn; yields who has which number."""
        for request, worker in zip(requests, itertools.cycle(self._workers)):
            number = next(self._numbers)
            try:
                worker.requests.send_bytes(_packed(request))
            except BrokenPipeError:
                raise UserError(_death(worker.process)) from None
            worker.pending.append(number)
            yield worker, number

    def _fetch(self, worker: _Worker, number: int) -> ImageBatch:
        while True:
            reply = self._receive(worker)
            # What comes before was asked for by an earlier call.
            if worker.pending.popleft() == number:
                break
        if isinstance(reply, str):
            raise UserError(reply)
        return reply

    def _receive(self, worker: _Worker) -> _Reply:
        size = bytearray(_SIZE.size)
        self._fill(worker, memoryview(size))
        head = bytearray(_SIZE.unpack(size)[0])
        self._fill(worker, memoryview(head))
        content = pickle.loads(head)
        if isinstance(content, str):
            return content
        index, shapes, skipped = content
        views = [torch.empty(shape, dtype=torch.uint8, pin_memory=self._pinned) for shape in shapes]
        for view in views:
            self._fill(worker, _memory(view))
        return ImageBatch(torch.from_numpy(index), views, skipped)

    def _fill(self, worker: _Worker, buffer: memoryview) -> None:
        while len(buffer):
            try:
                count = os.readv(worker.replies.fileno(), [buffer])
            except BlockingIOError:
                self._wait(worker)
                continue
            if not count:
                raise UserError(_death(worker.process))
            buffer = buffer[count:]

    def _wait(self, worker: _Worker) -> None:
        """Until there is something to read.

        Raises:
            UserError: a process is gone.
        """
        ends: list[Connection | int] = [worker.replies, *(other.process.sentinel for other in self._workers)]
        while worker.replies not in connection.wait(ends, POLL):
            for other in self._workers:
                if not other.process.is_alive():
                    raise UserError(_death(other.process))


def _end(workers: list[_Worker]) -> None:
    started = [worker.process for worker in workers if worker.process.pid is not None]
    for process in started:
        process.kill()
    deadline = time.monotonic() + PATIENCE
    for process in started:
        process.join(max(0.0, deadline - time.monotonic()))
        if process.is_alive():
            # A file system that hangs may hold it beyond its death; multiprocessing would wait for it at exit.
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
    for worker in workers:
        worker.requests.close()
        worker.replies.close()
    workers.clear()


def _death(process: BaseProcess) -> str:
    process.join(PATIENCE)
    status = process.exitcode
    if status is None or status >= 0:
        return f"a loader process ended by itself, with status {status}; --num-workers 0 shows where"
    name = signal.Signals(-status).name
    if status == -signal.SIGKILL:
        return (
            "a loader process was killed (SIGKILL), as the system does when memory runs out; "
            f"take fewer --num-workers or a smaller --batch-size, {WITHOUT}"
        )
    return f"a loader process was ended by {name}; --num-workers 0 shows whether the data set or a library crashes"


@contextmanager
def _held_back() -> Iterator[None]:
    """Signals wait while processes are made, which would otherwise act on them as this process does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _widen(pipe: Connection) -> None:
    with suppress(OSError, AttributeError):  # above the user's share, or not on Linux
        fcntl.fcntl(pipe.fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES)


# In a loader process.


def _serve(prepare: Prepare, number: int, requests: Connection, replies: Connection, others: list[Connection]) -> None:
    end_with_parent(signal.SIGKILL)
    # Ctrl-C, and a SIGTERM to the process group, reach every process; the training process alone
    # decides what they mean, and ends the others.
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    for end in others:
        end.close()
    torch.set_num_threads(1)  # those of the training process were not inherited, and would be waited for
    random_seeds.seed_everything(number)  # for data sets with draws of their own
    queue: SimpleQueue[_Reply] = SimpleQueue()
    try:
        Thread(target=_write_all, args=(replies, queue), daemon=True).start()
    except RuntimeError as error:
        _write(replies, f"cannot start a thread in a loader process: {error}; {_LIMITS[errno.EAGAIN]}, {WITHOUT}")
        return
    while True:
        try:
            request = _unpacked(requests.recv_bytes())
        except (EOFError, OSError):  # the training process is gone
            return
        queue.put(_attempt(prepare, request))


def _attempt(prepare: Prepare, request: Request) -> _Reply:
    try:
        return prepare(request)
    except (UserError, RunStopped) as error:
        return str(error)
    except OSError as error:
        if error.errno not in _LIMITS:
            return _fault(error, request)
        return f"a loader process failed: {error.strerror}; {_LIMITS[error.errno]}, {WITHOUT}"
    except MemoryError:
        return "a loader process has not enough memory; take fewer --num-workers or a smaller --batch-size"
    except Exception as error:
        return _fault(error, request)


def _fault(error: Exception, request: Request) -> str:
    images = ", ".join(map(str, request.index[:3].tolist()))
    of = f"{len(request.index)} images ({images}, ...)"
    return f"the data set failed in a batch of {of}: {type(error).__name__}: {error}; --num-workers 0 shows where"


def _write_all(replies: Connection, queue: SimpleQueue[_Reply]) -> None:
    try:
        while True:
            _write(replies, queue.get())
    finally:
        os._exit(1)  # nobody reads


_SIZE = struct.Struct("<Q")


def _write(replies: Connection, reply: _Reply) -> None:
    """The size of the head, the head, and the views as they are."""
    views: list[Tensor] = []
    content: object = reply
    if isinstance(reply, ImageBatch):
        views = reply.views
        content = reply.index.numpy(), [tuple(view.shape) for view in views], reply.skipped
    head = pickle.dumps(content)
    parts: list[bytes | memoryview] = [_SIZE.pack(len(head)), head, *map(_memory, views)]
    for part in parts:
        rest = memoryview(part)
        while len(rest):
            rest = rest[os.write(replies.fileno(), rest) :]


def _packed(request: Request) -> bytes:
    # As arrays: torch pickles a tensor slowly, and with multiprocessing's pickler into shared memory.
    drawn_as = None if request.drawn_as is None else request.drawn_as.numpy()
    return pickle.dumps((request.index.numpy(), request.recipes, request.epoch, drawn_as, request.first_copy))


def _unpacked(packed: bytes) -> Request:
    index, recipes, epoch, drawn_as, first_copy = pickle.loads(packed)
    numbers = None if drawn_as is None else torch.from_numpy(drawn_as)
    return Request(torch.from_numpy(index), recipes, epoch, numbers, first_copy)


def _memory(view: Tensor) -> memoryview:
    """The bytes of a view, which are not copied."""
    return view.numpy().reshape(-1).data
