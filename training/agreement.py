"""What all workers must have in common: data and checkpoint at the start, weights after epochs."""

from __future__ import annotations

import os
import tempfile
import zlib
from pathlib import Path

import megengine.module as M
import numpy as np

from data.datasets import Dataset
from utils import UserError

from . import identity
from .distributed.process_group import Workers


def on_data(train: Dataset, val: Dataset, workers: Workers) -> None:
    """Raise UserError naming a worker that sees other images than worker 0. All must call it."""
    if workers.size == 1:
        return
    described = {"training_images": len(train), **identity.describe(train, val)}
    parts = {
        "classes": ["classes"],
        "training images": ["training_images", "training_names"],
        "validation images": ["validation"],
    }
    row: list[int] = []
    for keys in parts.values():
        checksum = zlib.crc32(repr([described[key] for key in keys]).encode())
        row += _halves(checksum)
    rows = workers.gather(row)
    different = np.argwhere(rows != rows[0])
    if len(different):
        rank, column = different[0].tolist()
        raise UserError(
            f"{workers.name(rank)} has other {[*parts][column // 2]} than worker 0; give all hosts "
            "the same data under the same path"
        )


def on_checkpoint(path: Path | None, workers: Workers) -> tuple[Path | None, str | None]:
    """Return worker 0's checkpoint for every worker, and a line about those that saw another.

    `path` is what this worker sees; None for no checkpoint, and then a new run. A worker that does
    not see the same bytes gets them from worker 0, in a file without a name. All must call it.
    """
    if workers.size == 1:
        return path, None
    content = path.read_bytes() if path is not None and path.is_file() else None
    checksum = zlib.crc32(content or b"")
    rows = workers.gather((content is not None, *_halves(checksum)))
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


def on_weights(model: M.Module, workers: Workers) -> None:
    """Raise UserError unless all processes hold the same bits of weights and statistics.

    Costs one pass over the weights, so it can run after every epoch.
    """
    if workers.size == 1:
        return
    checksum = 0
    for value in model.state_dict().values():
        checksum = zlib.crc32(np.ascontiguousarray(value).data, checksum)
    checksums = workers.gather(_halves(checksum))
    different = np.flatnonzero((checksums != checksums[0]).any(axis=1))
    if len(different):
        name = workers.name(int(different[0]))
        raise UserError(
            f"{name} no longer holds the same weights as worker 0; give all hosts the same kind of "
            "processor, the same versions of packages (run.json lists those of worker 0) and the "
            "same MKL_DEBUG_CPU_TYPE; if they have these, test their memory"
        )


def _halves(checksum: int) -> tuple[int, int]:
    """Return the upper and the lower half of 32 bits, which `Workers.gather` keeps exactly."""
    return divmod(checksum, 1 << 16)
