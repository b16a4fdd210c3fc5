"""The one file in a compressed file or an archive, as a temporary file."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import PurePosixPath
from typing import IO, Any

from data.unpickle import UnsuitableError

_DECOMPRESS: dict[str, Callable[..., Any]] = {
    "gzip": gzip.open,
    "bz2": bz2.open,
    "xz": lzma.open,
}
COMPRESSED = tuple(_DECOMPRESS)
GROWTH = 100  # weights hardly compress: what would grow more was made to fill the disk

SUFFIXES = (".safetensors", ".pth", ".pt", ".pkl", ".bin", ".ckpt", ".npz", ".pdparams", ".tar")
_CHUNK = 1 << 20


def check_growth(archive: zipfile.ZipFile, size: int) -> None:
    """Raise UnsuitableError where the members of a zip file of `size` bytes say that they grow."""
    if sum(info.file_size for info in archive.infolist()) > GROWTH * size:
        raise UnsuitableError(
            "was refused, as its members say that they are far larger than the file; save the "
            "weights without compression"
        )


def decompressed(kind: str, file: IO[bytes], size: int) -> IO[bytes]:
    """Return a temporary file with what a file of `size` bytes holds, compressed by `kind`."""
    with _DECOMPRESS[kind](file) as inner:
        return _copied(inner, GROWTH * size)


def weights_in_zip(archive: zipfile.ZipFile, size: int) -> IO[bytes]:
    """Return a temporary file with the one file of weights in a zip file of `size` bytes."""
    names = [info.filename for info in archive.infolist() if not info.is_dir()]
    with archive.open(_only(names)) as inner:
        return _copied(inner, GROWTH * size)


def weights_in_tar(file: IO[bytes]) -> IO[bytes]:
    """Return a temporary file with the one file of weights in a tar file."""
    with tarfile.open(fileobj=file, mode="r:") as archive:
        names = [member.name for member in archive.getmembers() if member.isfile()]
        if {"pickle", "storages", "tensors"} & {PurePosixPath(name).name for name in names}:
            raise UnsuitableError(
                "is in the tar format of PyTorch before 0.1.10, which is not read; "
                "load it with PyTorch and save it again"
            )
        member = archive.getmember(_only(names))
        if member.issparse():  # a few bytes that stand for as many zeros as they say
            raise UnsuitableError(
                f"is an archive whose {member.name} is sparse, with zeros that are not in it; "
                "unpack it and give the file in it"
            )
        inner = archive.extractfile(member)
        assert inner is not None  # it is for members that are no files
        return _copied(inner, member.size)


def _only(names: Sequence[str]) -> str:
    weights = [
        name
        for name in names
        if PurePosixPath(name).suffix.lower() in SUFFIXES
        and not PurePosixPath(name).name.startswith(".")
        and "__MACOSX" not in name
    ]
    if len(weights) == 1:
        return weights[0]
    listed = ", ".join([*names][:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    what = "several files of weights" if weights else "no file of weights"
    raise UnsuitableError(f"is an archive with {what}: {listed}; unpack it and give one of them")


def _copied(inner: IO[bytes], limit: int) -> IO[bytes]:
    copy = tempfile.NamedTemporaryFile(prefix="weights-")  # noqa: SIM115 (removed when it is closed)
    while chunk := inner.read(_CHUNK):
        try:
            copy.write(chunk)
            copy.flush()
        except OSError as error:
            raise UnsuitableError(
                f"is compressed, and unpacking it needs space in {tempfile.gettempdir()} "
                f"({error.strerror}); free some, or name another folder by TMPDIR"
            ) from None
        if copy.tell() > limit:
            raise UnsuitableError(
                f"was refused, as it would grow to more than {GROWTH} times its size; give the "
                "file in it"
            )
    copy.seek(0)
    return copy
