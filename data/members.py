"""Files inside archives: where each lies, and reading it without unpacking anything."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple, overload

import numpy as np

_OPEN_FILES = 64  # opening a file for each image costs 1 % of decoding it


class Member(NamedTuple):
    """A file inside an archive, as a range of the archive's bytes.

    As a path, it is that of the archive followed by its own name: "val.tar/cat/1.jpg".

    Attributes:
        archive: path of the archive.
        name: its name there.
        offset: its first byte in the archive.
        size: its size in bytes, unpacked.
        packed: bytes that it takes in the archive, deflated; -1 where it is stored as it is.
    """

    archive: str
    name: str
    offset: int
    size: int
    packed: int = -1

    def __fspath__(self) -> str:
        return f"{self.archive}/{self.name}"

    def __str__(self) -> str:
        return self.__fspath__()

    def read(self) -> bytes:
        """Return the content; raise OSError where the archive does not have it."""
        length = self.size if self.packed < 0 else self.packed
        file = _opened(self.archive)
        content = os.pread(file.number, length, self.offset)
        while len(content) < length:  # at the end, or of more than 2 GiB
            more = os.pread(file.number, length - len(content), self.offset + len(content))
            if not more:
                raise OSError(0, "the archive ends before it does")
            content += more
        if self.packed < 0:
            return content
        try:
            unpacking = zlib.decompressobj(-zlib.MAX_WBITS)
            content = unpacking.decompress(content, self.size + 1)
        except zlib.error:
            content = b""
        if len(content) != self.size:
            raise OSError(0, "its compressed data is damaged")
        return content


class Index(NamedTuple):
    """The files in an archive.

    Attributes:
        names: of the files.
        places: int64 [N, 3]: offset, size and packed of Member.
        labels: position in `names` -> content, for small .cls and .json files.
    """

    names: list[str]
    places: np.ndarray
    labels: dict[int, str]


def version(path: str | os.PathLike) -> tuple[int, int]:
    """Return a file's size in bytes and the time of its last change in ns, by which it is known."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns


class _OpenFile:
    """A file that is open as long as something refers to this; `number` is the descriptor."""

    def __init__(self, path: str):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        with suppress(AttributeError):  # it could not be opened
            os.close(self.number)


_open: dict[str, _OpenFile] = {}  # path of an archive -> the open file, for all threads


def _opened(archive: str) -> _OpenFile:
    """Return an open archive, which stays open: also one that is replaced meanwhile.

    Another thread may close it in the table, but not while this one still reads it.
    """
    file = _open.get(archive)
    if file is None:
        file = _open[archive] = _OpenFile(archive)
        for name in list(_open)[: max(0, len(_open) - _OPEN_FILES)]:
            _open.pop(name, None)
    return file


def forget(archive: str) -> None:
    """Close an archive, so that the file that now has its name is read."""
    _open.pop(archive, None)


class Members(Sequence[Member]):
    """Many members of some archives, at 32 bytes each beside their names.

    Args:
        archives: paths of the archives.
        names: names of the members in their archives.
        places: int64 [N, 4]: index of the archive, and offset, size and packed of Member.
    """

    def __init__(self, archives: Sequence[str], names: Sequence[str], places: np.ndarray):
        self.archives, self.names, self.places = archives, names, places

    def __len__(self) -> int:
        return len(self.names)

    @overload
    def __getitem__(self, index: int) -> Member: ...

    @overload
    def __getitem__(self, index: slice) -> Members: ...

    def __getitem__(self, index: int | slice) -> Member | Members:
        if isinstance(index, slice):
            return self.take(range(len(self))[index])
        archive, offset, size, packed = self.places[index].tolist()
        return Member(self.archives[archive], self.names[index], offset, size, packed)

    def take(self, indices: Iterable[int]) -> Members:
        """Return the members at these indices."""
        chosen = list(indices)
        return Members(self.archives, [self.names[i] for i in chosen], self.places[chosen])
