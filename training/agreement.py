"""The checkpoint that all workers resume from, also where their hosts share no folder."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path

import numpy as np

from .distributed import Workers


def on_checkpoint(path: Path | None, workers: Workers) -> tuple[Path | None, str | None]:
    """Return worker 0's checkpoint for every worker, and a line about those that saw another.

    `path` is what this worker sees; None for no checkpoint, and then a new run. A worker that does
    not see the same bytes gets them from worker 0, in a file without a name. All must call it.
    """
    if workers.size == 1:
        return path, None
    content = path.read_bytes() if path is not None and path.is_file() else None
    checksum = zlib.crc32(content or b"")
    # in halves, which are exact as float32 too
    rows = workers.gather((content is not None, checksum >> 16, checksum & 0xFFFF))
    different = np.flatnonzero((rows != rows[0]).any(axis=1)).tolist()
    if not different:
        return path, None
    names = ", ".join(workers.name(rank) for rank in different)
    if not rows[0, 0]:  # an explicit path that is no file is an error where it is read
        return path if workers.rank == 0 else None, (
            f"worker 0 sees no checkpoint to resume from, unlike {names}: this is a new run"
        )
    content = workers.broadcast_bytes(content)
    if workers.rank in different:
        with tempfile.TemporaryFile() as file:
            file.write(content)
            path = Path(f"/proc/self/fd/{os.dup(file.fileno())}")  # open until this process ends
    return path, (
        f"the folder of checkpoints is not shared: {names} got the checkpoint from worker 0; "
        "only its host keeps the run's files"
    )
