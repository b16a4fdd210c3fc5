"""Where the files in a tar or zip lie: an index that is made once and kept beside it, as JSON.

Tars may hold tars, as ImageNet's do: their files are listed as NAME.tar/FILE. Nothing is unpacked.
An index names the size and the time of its archive, and is made anew when these differ.
"""

from __future__ import annotations

import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

import numpy as np

from utils import UserError, cache_folder, shown, write_atomically

from . import members, tar_index, zip_index
from .members import Index, Members

SUMS = "SHA256SUMS"  # the last file of a tar that tar_writer.py has written

_VERSION = 4


def kind(path: Path) -> str:
    """Return what a file is by its first bytes: tar, zip, parquet, gzip, idx ...; "" if unknown.

    Raises UserError when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(tar_index.BLOCK)
    except OSError as error:
        raise UserError(
            f"cannot read {shown(path)}: {error.strerror}; give a file that is there and may be "
            "read"
        ) from None
    for signature, name in (
        (b"PK\3\4", "zip"), (b"PK\5\6", "zip"), (b"PAR1", "parquet"), (b"\x1f\x8b", "gzip"),
        (b"BZh", "bzip2"), (b"\xfd7zXZ\0", "xz"), (b"(\xb5/\xfd", "zstd"), (b"\0\0\x08\3", "idx"),
        (b"\0\0\x08\1", "idx"),
    ):  # fmt: skip
        if head.startswith(signature):
            return name
    if head[257:262] == b"ustar" or tar_index.is_old_tar(head):
        return "tar"
    return ""


def all_members(paths: list[Path]) -> tuple[Members, dict[int, str]]:
    """Return the files in some archives, and the labels among them by position; see Index."""
    names: list[str] = []
    places, labels = [np.empty((0, 4), np.int64)], {}
    for number, path in enumerate(paths):
        made = index(path)
        count = len(made.names) - (made.names[-1:] == [SUMS])
        labels.update({len(names) + position: text for position, text in made.labels.items()})
        names += made.names[:count]
        places.append(np.insert(made.places[:count], 0, number, axis=1))
    return Members([os.fspath(path) for path in paths], names, np.concatenate(places)), labels


def index(path: Path) -> Index:
    """Return the files in a tar or zip, from its index where that is up to date.

    Raises UserError for an archive that is truncated or damaged.
    """
    for file in _index_files(path):
        known = _load(file, path)
        if known is not None:
            return known
    made = scan(path)
    save(path, made)
    return made


def scan(path: Path) -> Index:
    """Return the files in a tar or zip, as they are; raises what `index` does."""
    members.forget(os.fspath(path))  # it may have been replaced
    try:
        return zip_index.of_zip(path) if kind(path) == "zip" else tar_index.of_tar(path)
    except OSError as error:
        raise UserError(
            f"cannot read {shown(path)}: {error.strerror or error}; give a file that is there and "
            "may be read"
        ) from None


# ---------------------------------------------------------------- the index's own file


def _index_files(path: Path) -> list[Path]:
    """Return where the index of an archive may be: beside it, or in the cache."""
    unique = hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:10]
    name = f"{path.name}.index.json"
    return [path.with_name(name), cache_folder() / f"{unique}-{name}"]


def _stamp(path: Path) -> dict[str, int]:
    size, changed = members.version(path)
    return {"version": _VERSION, "size": size, "mtime_ns": changed}


def _load(file: Path, path: Path) -> Index | None:
    """Return an index that fits the archive and is whole; None otherwise."""
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        stamp = _stamp(path)
        content = json.loads(file.read_bytes())
        columns = [content[name] for name in ("offsets", "sizes", "packed")]
        names, places = content["names"], np.array(columns, np.int64).T
        labels = {int(position): text for position, text in content["labels"].items()}
        offsets, sizes, packed = places.T
        taken = np.where(packed < 0, sizes, packed)
        whole = (
            content["archive"] == stamp
            and len(places) == len(names)
            and all(isinstance(text, str) for text in (*names, *labels.values()))
            and all(0 <= position < len(names) for position in labels)
            and (offsets >= 0).all()
            and (sizes >= 0).all()
            and (offsets + taken <= stamp["size"]).all()
        )
        if whole:
            members.forget(os.fspath(path))
            return Index(names, places, labels)
    return None


def save(path: Path, made: Index) -> None:
    """Write an index beside its archive, or else into the cache; without either it is not kept."""
    stamp = _stamp(path)
    columns = zip(("offsets", "sizes", "packed"), made.places.T.tolist(), strict=True)
    content = {"archive": stamp, "names": made.names, **dict(columns), "labels": made.labels}
    text = json.dumps(content, separators=(",", ":")).encode()
    for file in _index_files(path):
        with suppress(UserError):
            return write_atomically(file, lambda out: out.write(text))
    return None
