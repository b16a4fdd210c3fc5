"""Heartbeats that the workers of MPI send each other, so that no one waits for a lost host.

MPI waits without end for a host whose power or network is gone. A thread of every worker sends
one whatever the worker does, be it a step, an evaluation or a slow save: to worker 0, which sends
one to all. Whoever misses them for too long ends the run on its host.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from .process_group import MPI
from .rendezvous import silence

if TYPE_CHECKING:
    import mpi4py.MPI

_BEAT, _LEAVING = 1, 2  # tags of messages


class Heartbeat:
    """The thread that sends and awaits the heartbeats of this worker; it starts at once.

    Args:
        workers: all of them, which must each have one.
        timeout: seconds without one after which a worker counts as lost.
        fail: is called in the thread with a sentence about the worker that is lost.
    """

    def __init__(self, workers: MPI, timeout: float, fail: Callable[[str], object]):
        self._workers, self._timeout, self._fail = workers, timeout, fail
        self._comm = workers.duplicate()
        self._peers = [0] if workers.rank else list(range(1, workers.size))
        now = time.monotonic()
        self._heard = dict.fromkeys(self._peers, now)
        self._gone: set[int] = set()
        self._sent: dict[int, mpi4py.MPI.Request] = {}  # the request of the last one to each peer
        self._nothing = np.empty(0, np.uint8)
        self._leave = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Take leave of the others, who all do the same now."""
        self._leave.set()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        interval = min(1.0, self._timeout / 8)
        last = time.monotonic()
        while not self._leave.wait(interval):
            now = time.monotonic()
            if now > last + self._timeout / 2:  # this process itself was stopped meanwhile
                self._heard = dict.fromkeys(self._peers, now)
            last = now
            self._send(_BEAT)
            self._receive(now)
            for peer, heard in self._heard.items():
                if now > heard + self._timeout and peer not in self._gone:
                    self._fail(silence(self._workers.name(peer), self._timeout))
        while not all(request.Test() for request in self._sent.values()):
            time.sleep(1e-3)
        self._sent.clear()
        self._send(_LEAVING)
        while self._gone != set(self._peers) or not all(r.Test() for r in self._sent.values()):
            self._receive(time.monotonic())
            time.sleep(1e-3)

    def _send(self, tag: int) -> None:
        for peer in self._peers:
            if peer not in self._sent or self._sent[peer].Test():  # else the last is under way
                self._sent[peer] = self._comm.Isend(self._nothing, peer, tag)

    def _receive(self, now: float) -> None:
        for peer in self._peers:
            for tag in (_BEAT, _LEAVING):
                while self._comm.Iprobe(peer, tag):
                    self._comm.Recv(self._nothing, peer, tag)
                    self._heard[peer] = now
                    if tag == _LEAVING:
                        self._gone.add(peer)
