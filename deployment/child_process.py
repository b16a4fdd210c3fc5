"""Child processes for native code that may crash or stall."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_NOISE = ("info: ", "debug: ")  # MegEngine's lines about a missing GPU


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Let the system end this process by SIGALRM when the block within takes longer.

    That holds in native code too, whatever it waits for and whichever lock it keeps.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def end_at_once_on_exit() -> None:
    """Make exit(), wherever native code calls it, end this process without exit handlers (glibc).

    MegEngine's handlers wait for its threads, for ever if it was one of these that called exit().
    The handler that is registered last runs first: call this when the libraries are loaded.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)


def how_it_ended(status: int, stderr: bytes, seconds: float) -> str:
    """Describe in a few words how a process with such a `time_limit` ended, for messages.

    Args:
        status: as subprocess.Popen.returncode has it, negative for a signal.
        stderr: what it has printed there; the last line is quoted.
        seconds: its time limit.
    """
    if status == -signal.SIGALRM:
        return f"gave no answer within {seconds:g} s"
    lines = stderr.decode(errors="replace").strip().splitlines()
    last = next((f": {line}" for line in reversed(lines) if not line.startswith(_NOISE)), "")
    if status < 0:
        return f"crashed ({signal.Signals(-status).name}{last})"
    return f"ended with exit status {status}{last}"
