"""Child processes for native code that may crash or stall."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Iterator
from contextlib import contextmanager

_NOISE = ("info: ", "debug: ")  # MegEngine's lines about a missing GPU


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End this process by SIGALRM if the body of the `with` statement takes longer than `seconds`.

    The limit also holds while native code waits or keeps Python's lock.
    """
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def end_at_once_on_exit() -> None:
    """Make exit() in native code end this process without running the other exit handlers (glibc).

    MegEngine's handlers wait for its threads, and never return if one of those called exit(). The
    handler that is registered last runs first, so call this after the libraries are loaded.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "on_exit"):
        libc.on_exit(libc._exit, None)


def how_it_ended(status: int, stderr: bytes, seconds: float) -> str:
    """Describe in a few words, for an error message, how a process with a `time_limit` ended.

    Args:
        status: return code as in subprocess.Popen.returncode, negative for a signal.
        stderr: standard error of the process; its last line is quoted.
        seconds: time limit of the process.
    """
    if status == -signal.SIGALRM:
        return f"gave no answer within {seconds:g} s"
    lines = stderr.decode(errors="replace").strip().splitlines()
    last = next((f": {line}" for line in reversed(lines) if not line.startswith(_NOISE)), "")
    if status < 0:
        return f"crashed ({signal.Signals(-status).name}{last})"
    return f"ended with exit status {status}{last}"
