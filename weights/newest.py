"""The checkpoint that was written last, for commands that are given none."""

from __future__ import annotations

import os
from contextlib import suppress
from os import PathLike
from pathlib import Path

from utils import UserError


def file_called(name: str, folder: str | PathLike) -> Path | None:
    """Return the file called `name` in `folder` or below that was written last, or None.

    Links to folders are followed, as a run may have been moved to another disk.
    """
    matches, seen = [], set()  # matches: (time of writing, file)
    for path, below, contents in os.walk(os.fspath(folder), followlinks=True):
        real = os.path.realpath(path)
        if real in seen:  # a link to a folder that it is in
            below.clear()
        elif name in contents:
            file = Path(path, name)
            with suppress(FileNotFoundError):  # a link to nothing, or removed meanwhile
                matches.append((file.stat().st_mtime, file))
        seen.add(real)
    return max(matches)[1] if matches else None


def best() -> Path:
    """Return the best.pkl under checkpoints/ that was written last; raise UserError without one."""
    path = file_called("best.pkl", "checkpoints")
    if path is None:
        raise UserError(
            "there is no best.pkl under checkpoints/; train first (python train.py) or give --model"
        )
    return path
