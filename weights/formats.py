"""Telling the format of a file from its content, whatever its name ends in."""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

from .torch_file import LEGACY

HEAD = 1024  # bytes at the beginning, which tell the formats apart

_PAGE = re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype\s+html|html|\?xml|head|body)", re.IGNORECASE)
_POINTER = re.compile(rb"version https?://(git-lfs|hawser)\.[^\n]*\n")
_ONNX = re.compile(rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42]", re.DOTALL)

# What begins a file -> its format.
_MAGIC = {
    b"PK\3\4": "zip",
    b"PK\5\6": "empty zip",
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
    b"\x89HDF\r\n\x1a\n": "hdf5",
    b"\x93NUMPY": "npy",
    b"GGUF": "gguf",
    b"\x89PNG": "image",
    b"\xff\xd8\xff": "image",
    b"mgb": "mge",  # before MegEngine 1.9
}

# Formats of files that hold no weights to read -> the rest of a sentence that begins "FILE".
NOT_READ = {
    "empty": "is empty; give a file that was saved completely",
    "empty zip": "is a zip archive without files; give one that holds the weights",
    "lfs": "is a Git LFS pointer, a few lines that stand for the file; fetch the file itself by "
    "`git lfs pull` in its repository",
    "page": "is a web page instead of weights, as servers send it to say an error or to ask for a "
    "login; open its address in a browser and download the file itself",
    "onnx": "is an exported network, not a checkpoint; give the checkpoint it was made from",
    "mge": "is an exported network, not a checkpoint; give the checkpoint it was made from",
    "zstd": "is compressed by zstd, which is not read; decompress it first",
    "7z": "is a 7z archive, which is not read; unpack it and give the file in it",
    "rar": "is a rar archive, which is not read; unpack it and give the file in it",
    "hdf5": "is an HDF5 file, as Keras writes it, which is not read; save the arrays by np.savez "
    "under their PyTorch names",
    "npy": "is a single array without a name; save all of them by np.savez under their names",
    "gguf": "is a GGUF file, which is not read; give a safetensors or PyTorch file",
    "image": "is an image; give a file of weights",
}


def of_file(path: str | PathLike) -> str:
    """Return the format of a file; for one that its content does not tell, "onnx" or "mge" by name.

    Returns "other" where neither tells it. Raises OSError when it cannot be read.
    """
    with open(path, "rb") as file:
        kind = of_content(file.read(HEAD))
    suffix = Path(path).suffix.lower()
    return suffix[1:] if kind in ("other", "empty") and suffix in (".onnx", ".mge") else kind


def of_content(head: bytes) -> str:
    """Return the format of a file that begins with `head`, HEAD bytes or the whole file.

    It is a key of NOT_READ, "zip", "gzip", "bz2", "xz", "tar", "safetensors", "json", "pickle", or
    "other", which may be an old pickle.
    """
    if not head:
        return "empty"
    # the first, for the length of its header, which comes before, may look like anything
    if head[8:9] == b"{" and head[9:10] in b'"} \n' and head[5:8] == b"\0\0\0":
        return "safetensors"
    for magic, kind in _MAGIC.items():
        if head.startswith(magic):
            return kind
    if head[:1] == b"\x80" or LEGACY in head[:32]:
        return "pickle"  # all that follows is its own
    if head[257:262] == b"ustar":
        return "tar"
    if head[8:12] == b"mgv2":
        return "mge"
    if _POINTER.match(head):
        return "lfs"
    if _PAGE.match(head):
        return "page"
    if _ONNX.match(head):
        return "onnx"
    if head.lstrip()[:1] == b"{":
        return "json"
    return "other"
