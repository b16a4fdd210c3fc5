"""Processes that decode and augment images into shared memory.

They are started as programs of their own that import only OpenCV and NumPy: forking a process
that has MegEngine's threads or MPI is not safe, and multiprocessing's "spawn" would import the
command, and with it MegEngine, in every worker. The memory has no name, so that nothing is left
behind however a process ends, and it is not bounded by /dev/shm, which is small in containers.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from mmap import mmap
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import BinaryIO, cast

import cv2
import numpy as np

import utils
from utils import UserError

from . import cgroup, stalls
from .decoding import ImageFile
from .prepare import Job, Prepare
from .processes import JOB_SIGNALS, end_with_parent, release_signals, signals_held_back

# Settings of glibc's allocator: one heap that keeps freed memory, in huge pages where glibc can.
# Memory for pixels is allocated and freed for each image anew, and fresh pages are slow.
_KEEP_FREED_MEMORY = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 62),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}

_START = 60.0  # more seconds for the first image of a worker, which is still starting

cv2.setNumThreads(0)  # the processes already use all cores


class _Memory:
    """Memory shared by the parent and its workers.

    Attributes:
        progress: int64 [workers, 2]: number of the message and row in it that each worker is at.
        pixels: uint8 [slots, batch, size, size, 3]: the batches under way.
    """

    def __init__(self, file: int, workers: int, slots: int, batch: int, size: int):
        shape = (slots, batch, size, size, 3)
        start = 16 * workers
        length = start + int(np.prod(shape))
        if os.fstat(file).st_size < length:
            os.truncate(file, length)
        shared = mmap(file, length)
        self.progress = np.frombuffer(shared, np.int64, 2 * workers).reshape(workers, 2)
        self.pixels = np.frombuffer(shared, np.uint8, offset=start).reshape(shape)


class DataWorkers:
    """Context manager that prepares batches of up to `batch` images in `count` processes.

    At most `slots` batches are under way. Worker i modulo `count` prepares row i of a batch.
    An image may take `limit` seconds, 0 for any time. `while_waiting` is called now and then while
    a batch is not ready, and may raise an exception.
    """

    def __init__(
        self,
        prepare: Prepare,
        count: int,
        slots: int,
        batch: int,
        limit: float = stalls.LIMIT,
        while_waiting: Callable[[], object] = lambda: None,
    ):
        self.count = count
        self._limit, self._while_waiting = limit, while_waiting
        self._kills = cgroup.kills()
        self._slots = slots
        self._batches: deque[list[Job]] = deque()  # the jobs of each batch under way
        self._submitted = self._collected = 0
        size = prepare.preprocessing.size
        with _anonymous_file() as file:
            memory = file.fileno()
            self._memory = _Memory(memory, count, slots, batch, size)
            self._memory.progress[:] = -1  # nobody has begun
            self._workers = [_DataWorker(memory) for _ in range(count)]
        for number, worker in enumerate(self._workers):
            worker.send((prepare, number, (count, slots, batch, size)))

    def __enter__(self) -> DataWorkers:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.close()

    def submit(self, jobs: list[Job]) -> None:
        """Begin a batch; at most `slots` may be under way."""
        slot = self._submitted % self._slots
        for number, worker in enumerate(self._workers):
            worker.send((slot, jobs[number :: self.count]))
        self._batches.append(jobs)
        self._submitted += 1

    def collect(self) -> tuple[np.ndarray, dict[int, str]]:
        """Return the oldest batch: its pixels, and a sentence for each row whose file is broken.

        The pixels are uint8 [N, size, size, 3] and valid until the next `submit`.

        Raises UserError naming the image when a worker has died or takes too long over one.
        """
        bad: dict[int, str] = {}
        for number, worker in enumerate(self._workers):
            try:
                self._wait(number)
                answer = worker.connection.recv()
            except (EOFError, OSError):
                if worker.failure:
                    raise RuntimeError(f"a message was not sent:\n{worker.failure}") from None
                raise self._death(number) from None
            if isinstance(answer, UserError):
                raise answer
            if isinstance(answer, str):
                raise RuntimeError(f"preparing {self._at(number)} failed:\n{answer}")
            bad |= {number + self.count * row: sentence for row, sentence in answer.items()}
        slot = self._collected % self._slots
        self._collected += 1
        jobs = self._batches.popleft()
        return self._memory.pixels[slot, : len(jobs)], bad

    def _wait(self, number: int) -> None:
        """Wait until a worker has answered or died."""
        patience = stalls.Patience(self._limit)
        tick = min(stalls.TICK, self._limit / 4) if self._limit else stalls.TICK
        while not self._workers[number].connection.poll(tick):
            self._while_waiting()
            message, row = self._memory.progress[number].tolist()
            if patience.ends((message, row), tick, extra=_START if message < 0 else 0.0):
                raise stalls.stalled(self._at(number), self._limit)

    def _at(self, number: int) -> ImageFile:
        """Return the image that a worker is preparing, or the first that it has not begun."""
        message, row = self._memory.progress[number]
        if message < self._collected:  # it has not begun the next batch
            message, row = self._collected, 0
        jobs = self._batches[message - self._collected][number :: self.count]
        return jobs[row].image if jobs else "nothing"

    def _death(self, number: int) -> UserError:
        process = self._workers[number].process
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        status = process.returncode
        how, advice = f"ended with exit status {status}", "look at that file"
        if status is not None and status < 0:
            how = f"was ended by {signal.Signals(-status).name}"
        if status == -signal.SIGKILL:
            advice = f"it {cgroup.reason(self._kills)}; fewer --workers need less"
        return UserError(
            f"data worker {number + 1} of {self.count} {how} at the image {self._at(number)}; "
            f"{advice}"
        )


class _DataWorker:
    """A process, the connection to it, and a thread that sends.

    A large message waits until the process reads it, which it does not while it hangs; the parent
    is to notice that, and waits for answers alone.
    """

    def __init__(self, memory: int):
        self.connection, theirs = Pipe()
        self.failure = ""  # of the thread
        self._messages: SimpleQueue[object] = SimpleQueue()
        self._sender = threading.Thread(target=self._send_all, daemon=True)
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", **_KEEP_FREED_MEMORY}
        with theirs, signals_held_back():
            self.process = subprocess.Popen(
                [*utils.module_command(__name__), str(theirs.fileno()), str(memory)],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(), memory),
                env=environment,
                start_new_session=True,  # Ctrl-C is for the parent
            )
        self._sender.start()

    def send(self, message: object) -> None:
        """Send a message after those before it; returns at once."""
        self._messages.put(message)

    def _send_all(self) -> None:
        try:
            with suppress(OSError):  # a worker that has died is noticed when it is waited for
                while (message := self._messages.get()) is not None:
                    self.connection.send(message)
        except BaseException:
            self.failure = traceback.format_exc()
            self.process.kill()  # so that the parent stops waiting

    def close(self) -> None:
        self.process.kill()  # it has nothing to lose
        with suppress(subprocess.TimeoutExpired):  # while a network drive does not answer
            self.process.wait(5)
        self._messages.put(None)
        self._sender.join(1)
        if not self._sender.is_alive():  # which otherwise still writes to the connection
            self.connection.close()


def _anonymous_file() -> BinaryIO:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("batches"), "r+b")
    return cast(BinaryIO, tempfile.TemporaryFile())


def serve(connection: Connection, file: int) -> None:
    """Prepare batches until the parent closes the connection or has ended."""
    for number in JOB_SIGNALS:  # the parent decides when to stop
        signal.signal(number, signal.SIG_IGN)
    release_signals()
    end_with_parent(connection.fileno())
    with suppress(EOFError, OSError):
        prepare, worker, layout = connection.recv()
        memory = _Memory(file, *layout)
        workers = layout[0]
        progress = memory.progress[worker]
        for message in range(sys.maxsize):
            slot, jobs = connection.recv()

            def note(row: int, message: int = message) -> None:
                progress[:] = message, row

            out = memory.pixels[slot, worker::workers][: len(jobs)]
            try:
                connection.send(prepare(jobs, out, note))
            except UserError as error:
                connection.send(error)
                return
            except Exception:
                connection.send(traceback.format_exc())
                return


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])), int(sys.argv[2]))
