"""What all kits share: a new folder that is written completely or not at all, and scripts."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import models

import megengine.module as M

from data import class_names
from data.transforms import Preprocessing
from utils import UserError

_SCRIPTS = Path(__file__).parent / "scripts"
NETWORK = "network.json"


@contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `path` at the end and removed after an error.

    So are the parents of `path` that had to be made. An empty folder that is there stays the same
    one, as it may be the working directory or a mount point: it gets the contents.

    Raises UserError when `path` exists and is not an empty folder, and when it cannot be written.
    """
    path = Path(path).resolve()
    made = [parent for parent in path.parents if not parent.exists()]
    name = f".{path.name}.{os.getpid()}.tmp"
    temporary = path / name if path.is_dir() else path.with_name(name)
    try:
        if path.exists() and not (path.is_dir() and not any(path.iterdir())):
            raise UserError(f"{path} exists already and is not empty; give a new folder")
        temporary.mkdir(parents=True)
        yield temporary
        if temporary.parent == path:
            for content in temporary.iterdir():
                os.replace(content, path / content.name)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            f"cannot write the folder {path}: {error.strerror or error}; "
            "free some space or choose another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # after success they are not empty
                parent.rmdir()


def network_settings(preprocessing: Preprocessing) -> dict[str, Any]:
    """Return what scripts/pixels.py needs to know to make a network's input of an image."""
    keys = ("size", "short_side", "resize_backend", "interpolation", "color", "mean", "std")
    return {key: getattr(preprocessing, key) for key in keys}


def write_scripts(
    folder: Path,
    board: str,
    compiled: str,
    model: M.Module,
    preprocessing: Preprocessing,
    metadata: dict[str, Any] | None,
) -> list[str]:
    """Write classify.py for a board and what it needs into a kit; return the names of the files.

    Args:
        folder: folder of the kit.
        board: name of the board's script in scripts/.
        compiled: file name of the network that the board's tools compile.
        model, preprocessing: the network and the preprocessing of its images.
        metadata: its "classes" are the names of the network's classes.
    """
    for name, copy in ((board, "classify"), ("program", "program"), ("pixels", "pixels")):
        shutil.copyfile(_SCRIPTS / f"{name}.py", folder / f"{copy}.py")
    network = {
        "name": models.variant_name(model.arch, model.options),
        "model": compiled,
        **network_settings(preprocessing),
        "classes": class_names.in_english((metadata or {}).get("classes"), model.num_classes),
    }
    text = json.dumps(network, indent=1)
    (folder / NETWORK).write_text(text + "\n", encoding="utf-8")
    return ["classify.py", "program.py", "pixels.py", NETWORK]
