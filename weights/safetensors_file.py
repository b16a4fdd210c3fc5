"""Reading safetensors files: one, or several with an index that says which tensor is where."""

from __future__ import annotations

import json
import mmap
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.unpickle import DamagedError, UnsuitableError

from .torch_tensors import bfloat16, float8

_TYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "C64": "<c8",
    "BOOL": "?",
    **{f"{kind}{8 * size}": f"<{kind.lower()}{size}" for kind in "IU" for size in (1, 2, 4, 8)},
}
_FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}


def read(file: IO[bytes]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the tensors of an open file, and its metadata.

    The tensors are read-only and read the file when they are used; bfloat16 and float8 become
    float32. Raises what `unpickle.reading` turns into a UserError.
    """
    from safetensors import safe_open

    with safe_open(file.name, framework="numpy"):  # checks that header and data agree
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    length = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:length])
    metadata = header.pop("__metadata__", {})
    return {name: _tensor(data, length, **entry) for name, entry in header.items()}, metadata


def _tensor(
    data: mmap.mmap, start: int, dtype: str, shape: list[int], data_offsets: list[int]
) -> np.ndarray:
    first, last = data_offsets
    stored = np.frombuffer(data, np.uint8, last - first, start + first)
    if dtype in _TYPES:
        values = stored.view(_TYPES[dtype])
    elif dtype in _FLOAT8:
        values = float8(_FLOAT8[dtype], stored)
    elif dtype == "BF16":
        values = bfloat16(stored.view("<u2"))
    else:
        raise UnsuitableError(
            f"has tensors of type {dtype}, which is not read; save them as float32"
        )
    return values.reshape(shape)


def shards(index: Any, path: Path) -> list[Path]:
    """Return the files that the index of a model in several files names.

    Args:
        index: contents of the .index.json file.
        path: the .index.json file.

    Raises UnsuitableError for another JSON file, and DamagedError where files are missing.
    """
    places = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(places, dict) or not places:
        raise UnsuitableError(
            "is a JSON text without a weight_map, so it leads to no weights; give the file or the "
            "folder that holds them"
        )
    names = sorted({str(name) for name in places.values()})
    if any(Path(name).name != name for name in names):
        raise UnsuitableError(f"names files outside of its folder, such as {names[0]}")
    missing = [name for name in names if not (path.parent / name).is_file()]
    if missing:
        raise UnsuitableError(
            f"is the index of {len(names)} files, but {', '.join(missing)} is not beside it; "
            "download the whole folder"
        )
    return [path.parent / name for name in names]


def merged(index: dict[str, Any], parts: dict[str, dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the tensors that an index names, from file name -> tensors of that file."""
    tensors = {}
    for key, name in index["weight_map"].items():
        if key not in parts[name]:
            raise DamagedError(f"its file {name} lacks {key}")
        tensors[key] = parts[name][key]
    return tensors
