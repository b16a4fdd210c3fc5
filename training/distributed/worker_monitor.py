"""What the parent of the workers on this host learns about them, and passes on to them."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from data import cgroup

from .. import signals
from . import rendezvous
from .cluster import ONE_HOST, Hosts

_GRACE = 2.0  # seconds that mpiexec has to end the other workers


def end_file(folder: Path, rank: int) -> Path:
    """Return the path of the named pipe that a worker holds open until it ends."""
    return folder / f"{rank}.end"


class WorkerMonitor:
    """The workers of this host as their notes and their end show them; see worker.py.

    Args:
        folder: where the workers write their notes.
        count: number of workers on this host.
        stop: signals that are passed on to worker 0.
        hosts: the hosts, this one among them.
    """

    def __init__(self, folder: Path, count: int, stop: signals.StopSignal, hosts: Hosts = ONE_HOST):
        self._folder, self._count, self._stop, self._hosts = folder, count, stop, hosts
        self._kills = cgroup.kills()
        self._first: int | None = None  # rank of the first that ended unfinished
        # each worker holds the other end of a named pipe, which the system closes when it ends
        self._ends = {}
        for rank in range(count):
            os.mkfifo(end_file(folder, rank))
            self._ends[rank] = os.open(end_file(folder, rank), os.O_RDONLY | os.O_NONBLOCK)

    def notes(self, rank: int) -> tuple[int, int | None, str]:
        """Return a worker's process or 0, its exit status or None, and the reason of a failure."""
        with suppress(FileNotFoundError):
            process, _, end = (self._folder / str(rank)).read_text().partition("\n")
            status, _, reason = end.partition("\n")
            return int(process), int(status) if status else None, reason
        return 0, None, ""

    def statuses(self) -> list[int | None]:
        """Return the exit status of each worker, None where it has not noted one."""
        return [self.notes(rank)[1] for rank in range(self._count)]

    def reason(self) -> str:
        """Return the reason that a worker has noted, "" where none has."""
        return next(filter(None, (self.notes(rank)[2] for rank in range(self._count))), "")

    def tell(self, rank: int, signal_number: int) -> bool:
        """Send a signal; returns False when the worker has not started or has ended."""
        process, *_ = self.notes(rank)
        with suppress(ProcessLookupError):
            if process:
                os.kill(process, signal_number)
            return bool(process)
        return False

    def watch(self, mpiexec: subprocess.Popen) -> None:
        """Note which worker ends first, and make the others end too, until mpiexec ends.

        Signals are passed on to worker 0 as soon as it runs.
        """
        told = False
        with selectors.DefaultSelector() as selector:
            for rank, file in self._ends.items():
                selector.register(file, selectors.EVENT_READ, rank)
            ended_at = None
            running = True
            while running:
                running = mpiexec.poll() is None  # and once more after it has ended
                if self._stop.number is not None and not told:
                    if self._stop.number == signal.SIGPIPE:
                        Path(signals.lost_output_note(self._folder)).touch()
                    told = self.tell(0, self._stop.number)
                if self._stop.save and self.tell(0, signals.SAVING):
                    self._stop.save = False
                for key, _ in selector.select(timeout=0.1):
                    selector.unregister(key.fileobj)
                    os.close(key.fd)
                    if self._first is None and self._has_failed(key.data):
                        self._first, ended_at = key.data, time.monotonic()
                        self._tell_other_hosts()
                if running and ended_at is not None and time.monotonic() > ended_at + _GRACE:
                    for rank in range(self._count):  # they wait for the one that has ended
                        self.tell(rank, signal.SIGKILL)
                    ended_at = None
            for key in selector.get_map().values():  # of workers that never came
                os.close(key.fd)

    def _has_failed(self, rank: int) -> bool:
        """Return whether a worker that has ended had not done its work."""
        _, status, reason = self.notes(rank)
        return status is None or bool(reason)

    def _tell_other_hosts(self) -> None:
        """Tell the workers of other hosts why the first one here has ended."""
        if self._hosts.count > 1:
            address = self._hosts.address if self._hosts.number else "localhost"
            assert self._first is not None  # it has just ended
            reason = self.notes(self._first)[2] or self.verdict()
            rendezvous.announce_failure(address, self._hosts.port, reason)

    def verdict(self, explanation: str = "", advice: str = "") -> str:
        """Return a sentence about the worker that ended first without a reason.

        Args:
            explanation: how mpiexec says that it ended, such as "killed".
            advice: what to do now, as the end of a sentence.
        """
        how = f" ({explanation})" if explanation else ""
        if self._first is None:
            return f"the workers ended before they had begun{how}"
        rank = self._first + self._count * self._hosts.number
        why = f"; it {cgroup.reason(self._kills)}" if explanation == "killed" else ""
        return (
            f"worker {rank} ended before its work was done{how}, and so the others were ended"
            f"{why}{advice}"
        )
