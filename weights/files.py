"""Reading files of tensors, whatever their format; nothing in them is executed."""

from __future__ import annotations

import hashlib
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError

from . import torch_file, unpickle


def read(path: str | PathLike) -> Any:
    """Return what a .pkl, .pth, .pth.tar, .safetensors or .npz file holds.

    The suffix tells the last two, the content the others.

    Raises UserError when the file is missing, broken, of no such format or asks for code.
    """
    path = Path(path)
    if path.suffix in (".onnx", ".mge") and path.is_file():
        raise UserError(
            f"{path} is an exported network, not a checkpoint; give the checkpoint it was made from"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    return torch_file.load(path)


def sha256(path: str | PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal; raise OSError when it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import safe_open

    with unpickle.reading(path), safe_open(path, framework="numpy") as file:
        return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    with unpickle.reading(path), np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}
