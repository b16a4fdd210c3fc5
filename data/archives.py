"""Where the files in a tar or zip lie: an index that is made once and kept beside it, as JSON.

Tars may hold tars, as ImageNet's do: their files are listed as NAME.tar/FILE. Nothing is unpacked.
An index names the size and the time of its archive, and is made anew when these differ.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import tarfile
import zipfile
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from utils import UserError, cache_folder, shown, write_atomically

from . import members
from .members import Members

SUMS = "SHA256SUMS"  # the last file of a tar that tar_writer.py has written

_VERSION = 3
_BLOCK = 512  # bytes of a tar's header
_LABEL_FILES = (".cls", ".json")  # of WebDataset; small, so that the index holds their content
_LONGEST_LABEL = 1 << 16
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a zip: signature, lengths of name and extra field


class Index(NamedTuple):
    """The files in an archive.

    Attributes:
        names: of the files.
        places: int64 [N, 3]: offset, size and packed of members.Member.
        labels: position in `names` -> content, for small .cls and .json files.
    """

    names: list[str]
    places: np.ndarray
    labels: dict[int, str]


def kind(path: Path) -> str:
    """Return what a file is by its first bytes: tar, zip, parquet, gzip, idx ...; "" if unknown.

    Raises UserError when it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_BLOCK)
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
    if head[257:262] == b"ustar" or _is_old_tar(head):
        return "tar"
    return ""


def _is_old_tar(head: bytes) -> bool:
    with suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        return True
    return False


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
        return _of_zip(path) if kind(path) == "zip" else _of_tar(path)
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
    status = os.stat(path)
    return {"version": _VERSION, "size": status.st_size, "mtime_ns": status.st_mtime_ns}


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


# ---------------------------------------------------------------- tar


def _of_tar(path: Path) -> Index:
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    labels: dict[int, str] = {}
    with open(path, "rb", buffering=_BLOCK) as file:
        size = os.fstat(file.fileno()).st_size
        with tqdm(
            total=size, desc=f"indexing {path.name}", unit="B", unit_scale=True, leave=False,
            disable=None,
        ) as bar:  # fmt: skip
            for name, offset, length in _files(file, path, "", size):
                if name.lower().endswith(_LABEL_FILES) and length <= _LONGEST_LABEL:
                    text = os.pread(file.fileno(), length, offset)
                    labels[len(names)] = text.decode(errors="surrogateescape")
                names.append(name)
                places.append((offset, length, -1))
                bar.update(offset - bar.n)
    return _without_replaced(Index(names, np.array(places, np.int64).reshape(-1, 3), labels))


def _without_replaced(made: Index) -> Index:
    """Leave out files of whose name another one comes later, as in a tar that was added to."""
    last = {name: position for position, name in enumerate(made.names)}
    if len(last) == len(made.names):
        return made
    kept = sorted(last.values())
    labels = {new: made.labels[old] for new, old in enumerate(kept) if old in made.labels}
    return Index([made.names[old] for old in kept], made.places[kept], labels)


def _files(file: BinaryIO, path: Path, folder: str, end: int) -> Iterator[tuple[str, int, int]]:
    """Yield name, offset and size of the files in the tar that begins where `file` is.

    Hard and symbolic links to files that come before are these files; a symbolic link to a folder
    has all its files. `end` is where the tar ends at the latest; `folder` is put before the names.
    """
    last = "its beginning"
    known: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}  # other symbolic links -> what they lead to
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            while (entry := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # or it keeps all of them
                last = folder + entry.name
                place = _place(entry, known)
                if place is None and entry.issym():
                    links[os.path.normpath(entry.name)] = _target(entry)
                if place is None:
                    continue
                offset, size = place
                if offset + size > end:
                    raise tarfile.ReadError("unexpected end of data")
                known[os.path.normpath(entry.name)] = place
                if entry.name.endswith(".tar") and _holds_tar(file, offset):
                    file.seek(offset)
                    yield from _files(file, path, f"{last}/", offset + size)
                else:
                    yield last, offset, size
        # tarfile takes what is no header for the end
        if os.pread(file.fileno(), _BLOCK, archive.offset) != bytes(_BLOCK):
            raise tarfile.ReadError("no end of archive")
        for linked, name in _in_linked_folders(path, links, sorted(known)):
            yield (folder + linked, *known[name])
    except tarfile.TarError:
        raise UserError(
            f"the tar {shown(path)} is truncated or damaged behind {shown(last)}; give a whole copy"
        ) from None


def _place(entry: tarfile.TarInfo, known: dict[str, tuple[int, int]]) -> tuple[int, int] | None:
    """Return offset and size of a file's content; None for folders and the like."""
    if entry.islnk():
        return known.get(os.path.normpath(entry.linkname))
    if entry.issym():
        return known.get(_target(entry))
    return (entry.offset_data, entry.size) if entry.isreg() and not entry.issparse() else None


def _in_linked_folders(
    path: Path, links: dict[str, str], names: list[str]
) -> Iterator[tuple[str, str]]:
    """Yield the names of files below links to folders, each with the file's own name.

    A link to a folder that it is in is not followed. Raises UserError where there are so many that
    they would fill the memory.
    """
    left = 10 * len(names)
    for link, target in links.items():
        if link.startswith(target + "/"):
            continue
        within = slice(*(bisect_left(names, target + end) for end in ("/", "0")))  # "0" follows "/"
        left -= len(names[within])
        if left < 0:
            raise UserError(
                f"the links to folders in the tar {shown(path)} lead to more than ten times its "
                "files; give a tar of fewer"
            )
        for name in names[within]:
            yield link + name.removeprefix(target), name


def _target(link: tarfile.TarInfo) -> str:
    """Return the path in the archive that a symbolic link leads to."""
    return os.path.normpath(f"{os.path.dirname(link.name)}/{link.linkname}")


def _holds_tar(file: BinaryIO, offset: int) -> bool:
    return _is_old_tar(os.pread(file.fileno(), _BLOCK, offset))


# ---------------------------------------------------------------- zip


def _of_zip(path: Path) -> Index:
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    try:
        with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
            for entry in tqdm(
                archive.infolist(), desc=f"indexing {path.name}", leave=False, disable=None
            ):
                if entry.is_dir():
                    continue
                if entry.flag_bits & 1 or entry.compress_type not in (0, zipfile.ZIP_DEFLATED):
                    raise UserError(
                        f"{shown(entry.filename)} in the zip {shown(path)} is encrypted, or "
                        "compressed otherwise than by deflate; unpack it and give the folder"
                    )
                start = entry.header_offset
                header = os.pread(file.fileno(), _LOCAL_HEADER.size, start)
                signature, name, extra = _LOCAL_HEADER.unpack(header)
                offset = start + _LOCAL_HEADER.size + name + extra
                end = offset + entry.compress_size
                if signature != b"PK\3\4" or end > os.fstat(file.fileno()).st_size:
                    raise zipfile.BadZipFile
                packed = entry.compress_size if entry.compress_type else -1
                names.append(entry.filename)
                places.append((offset, entry.file_size, packed))
    except (zipfile.BadZipFile, struct.error):
        after = f" behind {shown(names[-1])}" if names else ""
        raise UserError(
            f"the zip {shown(path)} is truncated or damaged{after}; give a whole copy"
        ) from None
    return Index(names, np.array(places, np.int64).reshape(-1, 3), {})
