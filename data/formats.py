"""The image formats that are read, how each is recognized, and what decodes it.

Pillow's pixels are the reference. libjpeg-turbo and OpenCV decode where they are faster and give
the same ones, as tests/data/test_formats.py checks for what OpenCV's and Pillow's encoders write.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple


class Format(NamedTuple):
    """An image format.

    Attributes:
        name: that of Pillow, where Pillow reads the format.
        suffixes: ends of the names of its files, separated by spaces.
        signature: regular expression of a file's first bytes; None for a format without one, which
            its files' names tell.
        decoder: what decodes it; where that is not Pillow, and cannot decode a variant or gets it
            wrong (see decoding.py), Pillow does.
    """

    name: str
    suffixes: str
    signature: bytes | None
    decoder: Literal["libjpeg-turbo", "OpenCV", "Pillow"]


FORMATS = (
    Format("JPEG", ".jpg .jpeg .jpe .jfif", rb"\xff\xd8", "libjpeg-turbo"),
    Format("PNG", ".png .apng", rb"\x89PNG\r\n\x1a\n", "OpenCV"),
    Format("WEBP", ".webp", rb"RIFF....WEBP", "OpenCV"),
    Format("BMP", ".bmp .dib", rb"BM", "Pillow"),
    Format("GIF", ".gif", rb"GIF8[79]a", "Pillow"),
    Format("TIFF", ".tif .tiff", rb"II[*+]\0|MM\0[*+]", "Pillow"),
    Format("PPM", ".ppm .pgm .pbm .pnm", rb"P[1-6]\s", "Pillow"),
    Format("JPEG2000", ".jp2 .j2k .j2c .jpc .jpx", rb"\0\0\0\x0cjP  |\xffO\xffQ", "Pillow"),
    Format("AVIF", ".avif", rb"....ftyp", "Pillow"),
    Format("SUN", ".ras .sr", rb"\x59\xa6\x6a\x95", "Pillow"),
    Format("PAM", ".pam", rb"P7\s", "OpenCV"),
    Format("HDR", ".hdr", rb"#\?(?:RADIANCE|RGBE)", "OpenCV"),
    Format("TGA", ".tga .icb .vda .vst", None, "Pillow"),
)
SUFFIXES = frozenset(suffix for row in FORMATS for suffix in row.suffixes.split())

_BY_NAME = {row.name: row for row in FORMATS}
_GROUPS = [f"(?P<{row.name}>".encode() + row.signature + b")" for row in FORMATS if row.signature]
_SIGNATURES = re.compile(b"|".join(_GROUPS), re.DOTALL)


def identify(content: bytes, name: str) -> Format | None:
    """Return the format of a file by its first bytes, or else by its name; None if it has none."""
    match = _SIGNATURES.match(content)
    if match is not None:
        return _BY_NAME[str(match.lastgroup)]
    end = name[name.rfind(".") :].lower()
    return next((row for row in FORMATS if not row.signature and end in row.suffixes.split()), None)
