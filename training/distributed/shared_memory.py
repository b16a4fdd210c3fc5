"""The shared memory that MPI leaves in /dev/shm when its processes are killed."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

_AGE = 60.0  # seconds within which the processes of a run that starts have opened its memory


def remove_left_over(folder: Path = Path("/dev/shm")) -> int:
    """Remove MPICH's segments of this user that no process uses; returns how many (Linux)."""
    with suppress(OSError):
        segments = [
            segment
            for segment in folder.glob("mpich_shm_*")
            if segment.stat().st_uid == os.getuid() and time.time() - segment.stat().st_mtime > _AGE
        ]
        used = _mapped() if segments else ""
        left_over = [segment for segment in segments if segment.name not in used]
        for segment in left_over:
            segment.unlink(missing_ok=True)
        return len(left_over)
    return 0


def _mapped() -> str:
    """Return the lines of all memory maps that this user may read and that name a segment."""
    lines = []
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            lines += [line for line in maps.read_text().splitlines() if "mpich_shm_" in line]
    return "\n".join(lines)
