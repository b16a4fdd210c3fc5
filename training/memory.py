"""The memory that a process has taken, and the memory that is free."""

from __future__ import annotations

import resource
from contextlib import suppress
from pathlib import Path

from data import cgroup


def peak_memory(process: int | str = "self") -> float:
    """Return the most memory that a process has had resident so far, in MB (2^20 bytes).

    `process` is this one, or the number of another (Linux).
    """
    with suppress(OSError):  # getrusage would count what the parent had before exec
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # macOS: in bytes


def available_memory() -> float:
    """Return the bytes that new processes can take without swapping (Linux); else infinity.

    The limit of a container or of a batch system's job counts where it is lower than the host's.
    """
    free = cgroup.available()
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = min(free, int(line.split()[1]) * 1024)
    return free
