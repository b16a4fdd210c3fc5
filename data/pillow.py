"""Decoding by Pillow: the pixels and the orientation that all other decoders are held to."""

from __future__ import annotations

import io
from contextlib import suppress
from warnings import catch_warnings, simplefilter

import cv2
import numpy as np
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import TiffImageFile

from .formats import Format
from .quiet import quiet

_LARGEST = 1 << 30  # pixels, as in OpenCV
# A larger picture with more pixels in a byte of its file is none: its size is wrong, and it takes
# memory and many seconds. Deflate, for one bit a pixel, has 8,256 at most.
_LARGE, _MOST_IN_A_BYTE = 1 << 27, 10_000
_ORIENTATION = 0x0112  # EXIF's tag
_BITS_PER_SAMPLE = 0x0102  # TIFF's tag
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_THIRTY_TWO_BITS = ("I", "F")
# upright = image, transposed or not, then mirrored about an axis of cv2.flip or not
_UPRIGHT = {2: (False, 1), 3: (False, -1), 4: (False, 0),
            5: (True, None), 6: (True, 1), 7: (True, -1), 8: (True, 0)}  # fmt: skip


def decode(content: bytes, kind: Format, reduction: int = 1) -> np.ndarray | None:
    """Return the first picture of a file, upright, uint8 BGR [H, W, 3]; None when it is broken.

    Transparency is ignored, and of 12 or 16 bits the upper eight are kept. Values of 32 bits, which
    have no range, are refused.

    Args:
        content: the file's content.
        kind: the format of the file.
        reduction: number, 1, 2, 4 or 8, by which height and width are divided, and rounded up: for
            a JPEG only.
    """
    # Pillow's decoders raise errors of many kinds
    with quiet(), catch_warnings(), suppress(Exception), _open(content, kind) as image:
        width, height = image.size
        if is_too_large(height, width, content):
            return None
        if reduction > 1:
            image.draft(None, (width // reduction, height // reduction))
            if image.size != (-(-width // reduction), -(-height // reduction)):
                return None
        image.load()
        bits = 16
        if isinstance(image, TiffImageFile):
            (bits, *_) = image.tag_v2.get(_BITS_PER_SAMPLE, (1,))
        return _pixels(ImageOps.exif_transpose(image), kind, bits)
    return None


def is_too_large(height: int, width: int, content: bytes) -> bool:
    """Return whether a file's picture has more pixels than any, or than its bytes can hold."""
    return height * width > min(_LARGEST, max(_LARGE, _MOST_IN_A_BYTE * len(content)))


def _open(content: bytes, kind: Format) -> Image.Image:
    simplefilter("ignore")
    Image.MAX_IMAGE_PIXELS = _LARGEST // 2  # Pillow warns from here on, and refuses twice as many
    return Image.open(io.BytesIO(content), formats=[kind.name])


def _pixels(image: Image.Image, kind: Format, bits: int) -> np.ndarray | None:
    if image.mode in _SIXTEEN_BITS or (image.mode == "I" and kind.name == "PPM"):
        grey = (np.asarray(image).astype(np.int32) >> (bits - 8)).astype(np.uint8)
        return cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR)
    if image.mode in _THIRTY_TWO_BITS:
        return None
    return cv2.cvtColor(np.asarray(image.convert("RGB")), cv2.COLOR_RGB2BGR)


def orientation(content: bytes, kind: Format) -> int:
    """Return the orientation of an image, 1 (as stored) to 8, in its EXIF or XMP block."""
    with quiet(), catch_warnings(), suppress(Exception), _open(content, kind) as image:
        value = image.getexif().get(_ORIENTATION)
        return value if value in _UPRIGHT else 1
    return 1


def upright(image: np.ndarray, orientation: int) -> np.ndarray:
    """Return an image with an EXIF orientation, uint8 [H, W, 3], as it is to be seen."""
    if orientation == 1:
        return image
    transposed, axis = _UPRIGHT[orientation]
    if transposed:
        image = cv2.transpose(image)
    return image if axis is None else cv2.flip(image, axis)
