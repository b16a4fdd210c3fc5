"""The memory limit of the control group that this process runs in (Linux, version 1 or 2).

Containers and batch systems limit memory so. The system kills a process of a group that needs more,
however much the host has, and counts it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_NO_LIMIT = 1 << 60  # version 1 writes the largest number of pages instead of "max"
# names of the files in version 2 and 1: limit, use, and use that can be given back in memory.stat
_FILES = {
    2: ("memory.max", "memory.current", "inactive_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
_COUNTERS = ("memory.events", "memory.oom_control")  # with a line "oom_kill N"


def available(root: Path = Path("/")) -> float:
    """Return the bytes that processes can take before the limit of a group, or infinity.

    `root` is where /proc and /sys are.
    """
    free = float("inf")
    for version, folder in _groups(root):
        limit_name, use_name, reclaimable_name = _FILES[version]
        with suppress(OSError, ValueError):
            limit = int((folder / limit_name).read_text())  # ValueError for "max"
            if limit < _NO_LIMIT:
                use = int((folder / use_name).read_text())
                reclaimable = _lines(folder / "memory.stat").get(reclaimable_name, 0)
                free = min(free, max(0, limit - use + reclaimable))
    return free


def kills(root: Path = Path("/")) -> int:
    """Return how many processes of the groups have been killed for lack of memory so far."""
    files = (folder / name for _, folder in _groups(root) for name in _COUNTERS)
    return max((_lines(file).get("oom_kill", 0) for file in files), default=0)


def reason(kills_before: int) -> str:
    """Describe why a process got SIGKILL; `kills_before` is what `kills` returned before that."""
    if kills() > kills_before:
        return "was killed for lack of memory: the limit of the container or job was reached"
    return "was probably killed for lack of memory (dmesg would tell)"


def _groups(root: Path) -> Iterator[tuple[int, Path]]:
    """Yield the version and the folder of this process's group and of all groups above it."""
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                version, mount = 2, root / "sys/fs/cgroup"
            elif "memory" in controllers.split(","):
                version, mount = 1, root / "sys/fs/cgroup/memory"
            else:
                continue
            folder = mount / path.lstrip("/")
            if not folder.is_dir():  # in a container that sees the path on the host
                folder = mount
            yield version, folder
            for parent in folder.parents:
                if not parent.is_relative_to(mount):
                    break
                yield version, parent


def _lines(file: Path) -> dict[str, int]:
    """Return the "name number" lines of a file; nothing where there is no such file."""
    with suppress(OSError, ValueError):
        pairs = (line.split() for line in file.read_text().splitlines())
        return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    return {}
