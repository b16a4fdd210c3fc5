"""Decoding a part of a JPEG file, at a reduced scale: only what a random crop shows.

OpenCV and Pillow decode whole images only, so this calls libjpeg-turbo's TurboJPEG 3 interface by
ctypes, in the library that the package `turbojpeg` contains (the package itself cannot crop).
Reference: https://rawcdn.githack.com/libjpeg-turbo/libjpeg-turbo/main/doc/html/
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np

# TurboJPEG's constants
_DECOMPRESS, _SUBSAMPLING, _BGR, _FATAL = 1, 4, 1, 1
# pixels in the width of a block of coefficients, by TurboJPEG's code of the chroma subsampling:
# 4:4:4, 4:2:2, 4:2:0, grey, 4:4:0, 4:1:1, 4:4:1
_MCU_WIDTH = (8, 16, 16, 8, 8, 32, 8)


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def decode_box(content: bytes, box: Box, reduction: int) -> np.ndarray | None:
    """Return `box` of a JPEG whose sides are divided by `reduction` (1, 2, 4 or 8).

    The box is in pixels of the reduced image; the result is uint8 BGR [box.height, box.width, 3].
    Returns None when libjpeg-turbo is missing, and when it cannot decode the file: one with four
    colours (CMYK), with unusual subsampling, or broken.
    """
    turbo = _library()
    if turbo is None:
        return None
    # a new one for each image: tables that an image lacks would be those of the image before it
    handle = turbo.tj3Init(_DECOMPRESS)
    try:
        return _decode_box(turbo, handle, content, box, reduction)
    finally:
        turbo.tj3Destroy(handle)


def _decode_box(
    turbo: ctypes.CDLL, handle: int, content: bytes, box: Box, reduction: int
) -> np.ndarray | None:
    if turbo.tj3DecompressHeader(handle, content, len(content)):
        return None
    subsampling = turbo.tj3Get(handle, _SUBSAMPLING)
    if not 0 <= subsampling < len(_MCU_WIDTH):
        return None
    # the left side must be that of a block of coefficients
    left = box.left - box.left % max(1, _MCU_WIDTH[subsampling] // reduction)
    extra = box.left - left
    region = _Region(left, box.top, box.width + extra, box.height)
    if turbo.tj3SetScalingFactor(handle, _Fraction(1, reduction)):
        return None
    if turbo.tj3SetCroppingRegion(handle, region):
        return None
    pixels = np.empty((region.height, region.width, 3), np.uint8)
    failed = turbo.tj3Decompress8(handle, content, len(content), pixels.ctypes.data, 0, _BGR)
    if failed and turbo.tj3GetErrorCode(handle) == _FATAL:
        return None
    return pixels[:, extra:]


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("left", "top", "width", "height")]


class _Fraction(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ("numerator", "denominator")]


@functools.cache
def _library() -> ctypes.CDLL | None:
    package = importlib.util.find_spec("turbojpeg")
    if package is None or package.origin is None:
        return None
    folder = Path(package.origin).parent / "turbojpeg.libs"
    file = next(folder.glob("libturbojpeg*"), None)
    if file is None:
        return None
    library = ctypes.CDLL(str(file))
    handle, data, size, integer = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int
    library.tj3Init.restype = handle
    for name, *arguments in (
        ("tj3Init", integer),
        ("tj3Destroy", handle),
        ("tj3Get", handle, integer),
        ("tj3GetErrorCode", handle),
        ("tj3DecompressHeader", handle, data, size),
        ("tj3SetScalingFactor", handle, _Fraction),
        ("tj3SetCroppingRegion", handle, _Region),
        ("tj3Decompress8", handle, data, size, ctypes.c_void_p, integer, integer),
    ):
        getattr(library, name).argtypes = arguments
    return library
