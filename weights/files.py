"""Reading and writing files of tensors, whatever their format; nothing in them is executed."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError

from . import torch_file

# Where checkpoints keep the weights beside other things; averaged weights are the ones evaluated.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")


def read(path: str | PathLike) -> Any:
    """What a .pkl, .pth, .pth.tar, .safetensors or .npz file holds, told by its content.

    Raises UserError when the file is missing, broken, of no such format or asks for code.
    """
    path = Path(path)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if path.suffix == ".npz":
        return _read_npz(path)
    return torch_file.load(path)


def tensors_of(contents: Any) -> dict[str, np.ndarray]:
    """The flat dict of arrays within: unwraps "model" and the like, and the prefix "module.".

    Gives an empty dict when there is none.
    """
    while isinstance(contents, dict):
        tensors = {key: value for key, value in contents.items() if _is_array(value)}
        if tensors and all(isinstance(key, str) for key in tensors):
            prefix = "module." if all(key.startswith("module.") for key in tensors) else ""
            return {key.removeprefix(prefix): value for key, value in tensors.items()}
        inner = (contents[key] for key in _NESTED if isinstance(contents.get(key), dict))
        contents = next((value for value in inner if value), None)
    return {}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)


def _read_safetensors(path: Path) -> dict[str, np.ndarray]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is truncated or not a safetensors file of float tensors ({error}); "
            "give a file that was saved completely"
        ) from None


def _read_npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {key: archive[key] for key in archive.files}
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except Exception as error:  # a broken zip can raise almost anything
        raise UserError(
            f"{path} is truncated or not an .npz file of arrays ({error}); "
            "give a file that was saved completely"
        ) from None
