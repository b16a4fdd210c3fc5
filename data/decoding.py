"""Decoding image files: the whole image, or only the part that a random crop shows."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np

from utils import UserError

from . import jpeg
from .jpeg import Box

_REDUCED = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


class BadImageError(UserError):
    """An image file that is corrupt, truncated or unreadable."""


def decode(path: Path | str) -> np.ndarray:
    """Return the image in a file, uint8 BGR [H, W, 3]; raise BadImageError naming the file.

    Images are rotated as their EXIF orientation says, here and in decode_crop. Of an animation the
    first picture is returned, and transparency is ignored.
    """
    return decode_content(_read(path), path)


def decode_content(content: bytes, name: Path | str) -> np.ndarray:
    """Return the image in a file's content, as `decode` does; `name` is for the error."""
    image = _decode(_complete(content, name))
    if image is None:
        raise _bad(name)
    return image


def decode_crop(path: Path | str, choose: Callable[[int, int], Box], side: int) -> np.ndarray:
    """Return the box of an image that `choose(height, width)` returns, uint8 BGR [h, w, 3].

    Of a JPEG only that part is decoded, and at a half, a quarter or an eighth of the scale where it
    then still has at least `side` pixels in height and width. It equals the same part of the whole
    image, except for a pixel at its left and right edge where colours are subsampled.

    Raises BadImageError naming the file.
    """
    content = _complete(_read(path), path)
    header = jpeg.read_header(content)
    if header is None:
        image = _decode(content)
        if image is None:
            raise _bad(path)
        return _part(image, choose(*image.shape[:2]))
    if header.orientation >= 5:  # height and width are exchanged
        box = choose(header.width, header.height)
    else:
        box = choose(header.height, header.width)
    reduction = 8
    while reduction > 1 and min(box.height, box.width) // reduction < side:
        reduction //= 2
    if reduction > 1:
        box = Box(*(value // reduction for value in box))
    part = jpeg.decode_box(content, box, reduction) if header.orientation == 1 else None
    if part is None:
        image = _decode(content, reduction)
        part = None if image is None else _part(image, box)
    if part is None or part.shape[:2] != (box.height, box.width):
        raise _bad(path)
    return part


def _part(image: np.ndarray, box: Box) -> np.ndarray:
    return image[box.top : box.top + box.height, box.left : box.left + box.width]


def _decode(content: bytes, reduction: int = 1) -> np.ndarray | None:
    with suppress(cv2.error):  # an image of more than 2^30 pixels, say
        image = cv2.imdecode(np.frombuffer(content, np.uint8), _REDUCED[reduction])
        if image is not None or reduction > 1:
            return image
    return _decode_gif(content) if content.startswith(b"GIF8") else None


def _decode_gif(content: bytes) -> np.ndarray | None:
    """Return the first picture of a GIF, decoded by Pillow: this OpenCV is built without GIF."""
    from PIL import Image

    with suppress(Exception), Image.open(io.BytesIO(content)) as image:
        return np.asarray(image.convert("RGB"))[:, :, ::-1].copy()
    return None


def _read(path: Path | str) -> bytes:
    try:
        file = os.open(path, os.O_RDONLY)  # Python's open makes decoding an image 2 % slower
        try:
            size = os.fstat(file).st_size or 1 << 16  # 0 for a pipe
            return b"".join(iter(lambda: os.read(file, size), b""))
        finally:
            os.close(file)
    except OSError as error:
        raise BadImageError(
            f"cannot read the image {path} ({error.strerror}); replace it"
        ) from None


def _complete(content: bytes, name: Path | str) -> bytes:
    """Return the content; raise BadImageError unless it ends as an image of its kind must."""
    if not content or _is_truncated(content):
        raise _bad(name)
    return content


def _bad(name: Path | str) -> BadImageError:
    return BadImageError(
        f"the image {name} is corrupt or truncated, or no image that OpenCV reads; replace it"
    )


def _is_truncated(content: bytes) -> bool:
    """Return whether the end marker of a JPEG or PNG is missing.

    Decoders do not report it: they fill the missing part of the image with grey.
    """
    if content.startswith(b"\xff\xd8"):  # no end of image, or a scan that starts after the last
        end = content.rfind(b"\xff\xd9")
        return end < 0 or content.find(b"\xff\xda", end) >= 0
    if content.startswith(b"\x89PNG"):
        return b"IEND" not in content[-64:]
    return False
