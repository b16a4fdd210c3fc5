"""What child processes have in common: who decides about their end, and that they have one."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# sent by people, terminals and batch systems to every process of a job
JOB_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


@contextmanager
def signals_held_back() -> Iterator[None]:
    """Start child processes, within this context, that JOB_SIGNALS do not reach until released.

    A process that is still starting would be ended by them, although its parent is to decide.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, JOB_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def release_signals() -> None:
    """Let JOB_SIGNALS reach this process, for which it now has handlers."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, JOB_SIGNALS)


def end_with_parent(connection: int) -> None:
    """End this process when its parent closes a socket or has ended, whatever it is doing then.

    `connection` is the number of this end of the socket.
    """

    def wait() -> None:
        poll = select.poll()
        poll.register(connection, 0)  # only the end of the connection is waited for
        poll.poll()
        os._exit(0)

    threading.Thread(target=wait, daemon=True).start()
