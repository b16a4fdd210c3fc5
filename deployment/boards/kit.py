"""A new folder for a board's kit, which is written completely or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils import UserError


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` at the end and removed after an error.

    Raises UserError when `path` exists and is not an empty folder, and when it cannot be written.
    """
    path = Path(path).resolve()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path} exists already and is not empty; give a new folder")
        temporary.mkdir(parents=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write the folder {path}: {error.strerror or error}; "
            "free some space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
