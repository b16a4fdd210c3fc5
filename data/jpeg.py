"""Decoding a part of a JPEG file, at a reduced scale: only what a random crop shows.

OpenCV and Pillow decode whole images only, so this calls libjpeg-turbo's TurboJPEG 3 interface by
ctypes, in the library that the package `turbojpeg` contains (the package itself cannot crop).
Reference: https://rawcdn.githack.com/libjpeg-turbo/libjpeg-turbo/main/doc/html/
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import threading
from pathlib import Path
from typing import Literal, NamedTuple

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


class Header(NamedTuple):
    """What a JPEG says: size as stored, in pixels; EXIF's orientation, 1 (as stored) to 8."""

    height: int
    width: int
    orientation: int


def read_header(content: bytes) -> Header | None:
    """Return the header of a JPEG file's bytes; None when they are something else or broken."""
    if not content.startswith(b"\xff\xd8"):
        return None
    position, orientation = 2, 1
    while position + 9 <= len(content) and content[position] == 0xFF:
        marker = content[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a start of frame
            height = int.from_bytes(content[position + 5 : position + 7], "big")
            width = int.from_bytes(content[position + 7 : position + 9], "big")
            return Header(height, width, orientation) if height and width else None
        length = int.from_bytes(content[position + 2 : position + 4], "big")
        if marker == 0xE1 and content[position + 4 : position + 10] == b"Exif\0\0":
            orientation = _orientation(content[position + 10 : position + 2 + length])
        position += 2 + length
    return None


def _orientation(tiff: bytes) -> int:
    """Return tag 0x0112 of the first directory of an EXIF block; 1 without it."""
    order: Literal["little", "big"] = "little" if tiff.startswith(b"II") else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(tiff[start : start + size], order)

    directory = number(4, 4)
    end = min(len(tiff), directory + 2 + 12 * number(directory, 2))
    for entry in range(directory + 2, end, 12):
        if number(entry, 2) == 0x0112:
            value = number(entry + 8, 2)
            return value if 1 <= value <= 8 else 1
    return 1


def decode_box(content: bytes, box: Box, reduction: int) -> np.ndarray | None:
    """Return `box` of a JPEG whose sides are divided by `reduction` (1, 2, 4 or 8).

    The box is in pixels of the reduced image; the result is uint8 BGR [box.height, box.width, 3].
    Returns None when libjpeg-turbo is missing, and when it cannot decode the file: one with four
    colours (CMYK), with unusual subsampling, or broken.
    """
    turbo = _library()
    if turbo is None:
        return None
    handle = _decompressor(turbo, threading.get_ident())
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
def _decompressor(turbo: ctypes.CDLL, _thread: int) -> int:
    """Return the decompressor of a thread, the same for every image that it decodes."""
    return turbo.tj3Init(_DECOMPRESS)


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
        ("tj3Get", handle, integer),
        ("tj3GetErrorCode", handle),
        ("tj3DecompressHeader", handle, data, size),
        ("tj3SetScalingFactor", handle, _Fraction),
        ("tj3SetCroppingRegion", handle, _Region),
        ("tj3Decompress8", handle, data, size, ctypes.c_void_p, integer, integer),
    ):
        getattr(library, name).argtypes = arguments
    return library
