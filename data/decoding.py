"""Decoding image files: the whole image, or only the part that a random crop shows."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from utils import UserError, shown

from . import chunks, jpeg, pillow
from .formats import Format, identify
from .jpeg import Box
from .jpeg_header import read_header
from .members import Member
from .quiet import quiet

Choose = Callable[[int, int], Box]  # (height, width) -> the part that is wanted

_CHUNKS = {"PNG": chunks.png, "WEBP": chunks.webp}
_FULL_SCALE = 1 << 31  # pixels; no side is that long


class BadImageError(UserError):
    """An image file that is corrupt, truncated or unreadable."""


ImageFile = Path | str | Member


def decode(path: ImageFile) -> np.ndarray:
    """Return the image in a file, uint8 BGR [H, W, 3]; raise BadImageError naming the file.

    The file may be one inside an archive.

    Images are rotated as their EXIF orientation says, here and in decode_crop. Of an animation the
    first picture is returned, and transparency is ignored.
    """
    return decode_content(read(path), path)


def decode_content(content: bytes, name: ImageFile) -> np.ndarray:
    """Return the image in a file's content, as `decode` does; `name` is for the error."""
    return _decode(content, name, lambda height, width: Box(0, 0, height, width), _FULL_SCALE)


def decode_crop(path: ImageFile, choose: Choose, side: int) -> np.ndarray:
    """Return the box of an image that `choose(height, width)` returns, uint8 BGR [h, w, 3].

    Of a JPEG only that part is decoded, and at a half, a quarter or an eighth of the scale where it
    then still has at least `side` pixels in height and width. It equals the same part of the whole
    image, except for a pixel at its left and right edge where colours are subsampled.

    Raises BadImageError naming the file.
    """
    return _decode(read(path), path, choose, side)


def _decode(content: bytes, name: ImageFile, choose: Choose, side: int) -> np.ndarray:
    kind = identify(content, str(name))
    part = None
    if kind is not None and kind.decoder == "libjpeg-turbo":
        part = _decode_jpeg(content, kind, choose, side)
    elif kind is not None:
        image = _decode_whole(content, kind)
        part = None if image is None else _part(image, choose(*image.shape[:2]))
    if part is None:
        raise BadImageError(
            f"the image {shown(name)} is corrupt or truncated, or no image of a format that is "
            "read; replace it"
        )
    return part


def _decode_jpeg(content: bytes, kind: Format, choose: Choose, side: int) -> np.ndarray | None:
    header = read_header(content)
    if header is None or not header.complete:
        return None
    turned = pillow.orientation(content, kind) if header.has_metadata else 1
    height, width = header.height, header.width
    if pillow.is_too_large(height, width, content):
        return None
    box = choose(*((width, height) if turned >= 5 else (height, width)))
    reduction = 8 if header.lossy else 1
    while reduction > 1 and min(box.height, box.width) // reduction < side:
        reduction //= 2
    if reduction > 1:
        box = Box(*(value // reduction for value in box))
    image = None
    if header.lossy and turned == 1:
        image = jpeg.decode_box(content, box, reduction)
        if image is not None:
            return image
    elif header.lossy:
        everything = Box(0, 0, -(-height // reduction), -(-width // reduction))
        image = jpeg.decode_box(content, everything, reduction)
    if image is None:
        image = pillow.decode(content, kind, reduction)
    else:
        image = pillow.upright(image, turned)
    return None if image is None else _part(image, box)


def _decode_whole(content: bytes, kind: Format) -> np.ndarray | None:
    complete, plain = _CHUNKS[kind.name](content) if kind.name in _CHUNKS else (True, True)
    if not complete:
        return None
    if kind.decoder == "Pillow" or not plain:
        return pillow.decode(content, kind)
    with quiet(), suppress(cv2.error):  # an image of more than 2^30 pixels, say
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        # of a grey PAM it returns one channel
        return (
            cv2.cvtColor(image, cv2.COLOR_GRAY2BGR)
            if image is not None and image.ndim == 2
            else image
        )
    return None


def _part(image: np.ndarray, box: Box) -> np.ndarray | None:
    part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    return part if part.shape[:2] == (box.height, box.width) else None


def read(path: ImageFile) -> bytes:
    """Return the content of an image file; raise BadImageError naming it."""
    try:
        if isinstance(path, Member):
            return path.read()
        file = os.open(path, os.O_RDONLY)  # Python's open makes decoding an image 2 % slower
        try:
            size = os.fstat(file).st_size or 1 << 16  # 0 for a pipe
            return b"".join(iter(lambda: os.read(file, size), b""))
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):  # no fault of the image
            raise UserError(
                f"cannot read the image {shown(path)} ({error.strerror}); allow more open files by "
                "ulimit -n"
            ) from None
        raise BadImageError(
            f"cannot read the image {shown(path)} ({error.strerror}); replace it"
        ) from None
