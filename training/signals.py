"""Signals while a network trains: noted at once, acted on between two steps.

SIGINT (Ctrl-C), SIGTERM and SIGHUP (the terminal was closed) end a run after it has saved, and so
does SIGPIPE, which here means that the output can no longer be written. SIGUSR1 makes it save and
go on; batch systems can send it some time before they end a job.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from data.processes import JOB_SIGNALS

if TYPE_CHECKING:  # a command notes signals before it imports what takes a second
    from collections.abc import Callable
    from types import FrameType

    import numpy as np

    from .distributed.process_group import Workers

    _Handler = Callable[[int, FrameType | None], object] | int | None

SAVING = signal.SIGUSR1
_NOTED = (*JOB_SIGNALS, signal.SIGPIPE)
# an environment variable: a worker whose parent decides about a second SIGINT
SUPERVISED = "WORKERS_FOLDER"
_BOUNCE = 0.1  # seconds within which a second SIGINT is taken to be the same as the first


class Interrupted(Exception):
    """A signal arrived, and training has stopped; `signal` is its number."""

    def __init__(self, number: int):
        name = signal.Signals(number).name
        why = " (the output can no longer be written)" if number == signal.SIGPIPE else ""
        super().__init__(name + why)
        self.signal = number


class StopSignal:
    """A context within which signals are noted and otherwise ignored.

    Contexts may be nested, also the same one; the inner one knows what the outer has noted. A
    second SIGINT ends the process at once, unless it is a worker whose parent decides on that.

    Attributes:
        number: the first signal to end the run that arrived, or None.
        save: whether SIGUSR1 has arrived; whoever saves sets it to False.
        all_save: whether SIGUSR1 had arrived in a worker when all agreed; likewise.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self.save = self.all_save = False
        self._since = 0.0  # when `number` arrived
        self._previous: list[dict[signal.Signals, _Handler]] = []

    def __enter__(self) -> StopSignal:
        outer = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
        if isinstance(outer, StopSignal) and self.number is None:
            self.number, self._since = outer.number, outer._since
            self.save = outer.save
        previous: dict[signal.Signals, _Handler] = {}
        for number in _NOTED:
            # nohup ignores SIGHUP for us
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                previous[number] = signal.signal(number, self._note)
        self._previous.append(previous)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.pop().items():
            signal.signal(number, handler or signal.SIG_DFL)

    def agree(self, workers: Workers, images: int) -> np.ndarray:
        """Return how many images each worker has for the next step; `images` is this one's number.

        Raises Interrupted in all workers when one of them was told to stop.
        """
        stops, saves, counts = workers.gather((self.number or 0, self.save, images)).T
        if stops.any():
            raise Interrupted(int(stops.max()))
        self.all_save |= bool(saves.any())
        return counts

    def leave_if_alone(self, workers: Workers, _: object = None) -> None:
        """Raise Interrupted at once where there is one worker; several go on to the next step."""
        if self.number is not None and workers.size == 1:
            raise Interrupted(self.number)

    def _note(self, number: int, _frame: object) -> None:
        if number == signal.SIGPIPE and not _is_announced():
            return  # a connection to another process has broken, which whoever writes to it notices
        impatient = number == signal.SIGINT and SUPERVISED not in os.environ
        if number == SAVING:
            self.save = True
        elif self.number is None:
            self.number, self._since = number, time.monotonic()
            if impatient:
                _tell("stopping as soon as possible; Ctrl-C again ends at once")
        elif impatient and time.monotonic() > self._since + _BOUNCE:
            _tell("ended at once")
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)


_output_is_lost = False  # as `output_lost` has said, until it is noted


def output_lost() -> None:
    """Tell a run that its output can no longer be written; nothing happens outside of one."""
    global _output_is_lost
    _output_is_lost = True
    signal.raise_signal(signal.SIGPIPE)  # Python ignores it, except while a network trains


def lost_output_note(folder: str | os.PathLike) -> str:
    """Return the file by which the parent of workers says that it cannot write their output."""
    return os.path.join(folder, "output-lost")


def _is_announced() -> bool:
    """Return whether a SIGPIPE says that the output is lost: this process's, or its parent's."""
    global _output_is_lost
    announced, _output_is_lost = _output_is_lost, False
    folder = os.environ.get(SUPERVISED)
    return announced or (folder is not None and os.path.exists(lost_output_note(folder)))


def _tell(line: str) -> None:
    with suppress(OSError):
        os.write(2, f"\n{line}\n".encode())
