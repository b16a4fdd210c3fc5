"""Reading files of tensors, whatever their format; nothing in them is executed."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from data import unpickle
from data.unpickle import UnsuitableError
from utils import UserError

from . import archives, formats, safetensors_file, torch_file

_MARKS = ("architecture", "pretrained_cfg")  # keys of timm's config.json, one at least

# Names of the weights in a folder that stands for a network, the first that is there.
_IN_FOLDER = (
    *("best.pkl", "model.safetensors", "model.safetensors.index.json"),
    *("pytorch_model.bin", "pytorch_model.bin.index.json"),
)


@dataclass
class Contents:
    """What a file holds.

    Attributes:
        tree: dicts, lists, plain values, arrays and `foreign.Placeholder`s, as they are nested.
        metadata: text that a safetensors file says about itself.
        config: contents of the config.json beside the weights of a folder, if there is one.
    """

    tree: Any
    metadata: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None


def read(path: str | PathLike) -> Contents:
    """Return what a file holds, or the weights in a folder.

    The content tells the format: a pickle, a PyTorch file of any version, safetensors, .npz, the
    index of several safetensors files, or one of these compressed or alone in an archive.

    Raises UserError when the file is missing, broken, of no such format or asks for code.
    """
    with unpickle.reading(path):
        path = in_folder(path)
        with open(path, "rb") as file:
            contents = _read(file, path)
    contents.config = _config_beside(path)
    return contents


def _read(
    file: IO[bytes], path: Path, archived: bool = False, decompressed: bool = False
) -> Contents:
    head = file.read(formats.HEAD)
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    kind = formats.of_content(head)
    if kind in formats.NOT_READ:
        raise UnsuitableError(formats.NOT_READ[kind])
    if kind == "safetensors":
        return Contents(*safetensors_file.read(file))
    if kind == "json":
        return _read_shards(json.load(file), path)
    inner: IO[bytes] | None = None
    if kind == "zip":
        with zipfile.ZipFile(file) as archive:
            names = {PurePosixPath(name).name for name in archive.namelist()}
            if any(name.endswith(".npy") for name in names):
                archives.check_growth(archive, size)
                return Contents(_read_npz(file))
            if "data.pkl" not in names:
                inner = archives.weights_in_zip(archive, size)
        file.seek(0)
    elif kind == "tar":
        inner = archives.weights_in_tar(file)
    elif kind in archives.COMPRESSED:
        if decompressed:  # each time it may grow by the same factor
            raise UnsuitableError("is compressed twice; decompress it and give the file in it")
        inner = archives.decompressed(kind, file, size)
    if inner is None:
        return Contents(torch_file.load_file(file))
    if archived:
        raise UnsuitableError("is an archive in an archive; unpack it and give the file in it")
    with inner:
        compressed = kind in archives.COMPRESSED
        return _read(inner, path, archived=not compressed, decompressed=compressed)


def _read_npz(file: IO[bytes]) -> dict[str, np.ndarray]:
    with np.load(file, allow_pickle=False) as archive:
        tensors = {}
        for key in archive.files:
            try:
                tensors[key] = archive[key]
            except ValueError as error:
                if "Object arrays" not in str(error):  # beside the weights; it is left out
                    raise
        return tensors


def _read_shards(index: Any, path: Path) -> Contents:
    parts = {file.name: read(file).tree for file in safetensors_file.shards(index, path)}
    return Contents(safetensors_file.merged(index, parts))


def in_folder(path: str | PathLike) -> Path:
    """Return the file of weights in a folder, or the path of a file as it is.

    Raises UserError for a folder without weights, or with several files of them.
    """
    folder = Path(path)
    if not folder.is_dir():
        return folder
    named = next((folder / name for name in _IN_FOLDER if (folder / name).is_file()), None)
    if named is not None:
        return named
    files = sorted(file for file in folder.iterdir() if file.suffix.lower() in archives.SUFFIXES)
    if len(files) == 1:
        return files[0]
    if files:
        names = ", ".join(file.name for file in files[:5])
        raise UserError(f"{folder} is a folder of several files of weights: {names}; give one")
    raise UserError(
        f"{folder} is a folder without weights such as model.safetensors or best.pkl; give a file"
    )


def _config_beside(path: Path) -> dict[str, Any] | None:
    """Return timm's config.json of the folder whose weights are in `path`; None without one.

    Beside a file that is not called as timm's are, a config.json may be of anything.
    """
    file = path.parent / "config.json"
    of_timm = path.name in _IN_FOLDER[1:]  # best.pkl is this project's
    try:
        if not file.is_file() or (not of_timm and in_folder(path.parent) != path):
            return None
        config = json.loads(file.read_text())
    except UserError:  # one of several files, of which config.json need not speak
        return None
    except (OSError, ValueError, RecursionError) as error:
        if not of_timm:
            return None
        raise UserError(f"cannot read {file}: {error}; mend it or remove it") from None
    if not isinstance(config, dict) or not (of_timm or {*_MARKS} & config.keys()):
        return None
    return config


def sha256(path: str | PathLike) -> str:
    """Return the SHA-256 of a file, in hexadecimal; raise OSError when it cannot be read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
