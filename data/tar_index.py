"""Where the files in a tar lie, also those in tars within it."""

from __future__ import annotations

import os
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from tqdm import tqdm

from utils import UserError, shown

from .members import Index

BLOCK = 512  # bytes of a header
_LABEL_FILES = (".cls", ".json")  # of WebDataset; small, so that the index holds their content
_LONGEST_LABEL = 1 << 16


def of_tar(path: Path) -> Index:
    """Return the files in a tar, and in tars within it; raise UserError where it is damaged."""
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    labels: dict[int, str] = {}
    with open(path, "rb", buffering=BLOCK) as file:
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
        if os.pread(file.fileno(), BLOCK, archive.offset) != bytes(BLOCK):
            raise tarfile.ReadError("no end of archive")
        if not _is_zero(file, archive.offset, end):
            raise UserError(
                f"the tar {shown(path)} goes on behind its end, as several that were joined to one "
                "file do; give each as a file of its own"
            )
        for linked, name in _in_linked_folders(path, links, sorted(known)):
            yield (folder + linked, *known[name])
    except tarfile.TarError:
        raise UserError(
            f"the tar {shown(path)} is truncated or damaged behind {shown(last)}; give a whole copy"
        ) from None


def _is_zero(file: BinaryIO, start: int, end: int) -> bool:
    """Return whether all bytes of a range of a file are 0."""
    chunk = 1 << 20
    return not any(
        os.pread(file.fileno(), min(chunk, end - offset), offset).strip(b"\0")
        for offset in range(start, end, chunk)
    )


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
    return is_old_tar(os.pread(file.fileno(), BLOCK, offset))


def is_old_tar(head: bytes) -> bool:
    """Return whether a file that begins so is a tar without the mark of newer ones."""
    with suppress(tarfile.HeaderError):
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
        return True
    return False
