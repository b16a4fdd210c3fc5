"""The chunks of PNG and WebP files: is the end there, and is there more than one plain picture?"""

from __future__ import annotations

from typing import NamedTuple

_METADATA_OR_ANIMATION = (b"eXIf", b"acTL")
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_TEXTS_WITH_ORIENTATION = (b"XML:com.adobe.xmp", b"Raw profile type")


class Chunks(NamedTuple):
    """What the chunks of a file say.

    Attributes:
        complete: the end of the image is there; other data may follow.
        plain: one picture, and no block of metadata with an orientation.
    """

    complete: bool
    plain: bool


def png(content: bytes) -> Chunks:
    """Read the chunks of a PNG; there are some for every 8 KiB or so."""
    plain, position = True, 8
    while position + 12 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        kind = content[position + 4 : position + 8]
        if kind in _METADATA_OR_ANIMATION:
            plain = False
        elif kind in _TEXTS:
            plain &= not content.startswith(_TEXTS_WITH_ORIENTATION, position + 8)
        position += 12 + length
        if kind == b"IEND":
            return Chunks(position <= len(content), plain)
    return Chunks(False, plain)


def webp(content: bytes) -> Chunks:
    """Read the chunks of a WebP; only its extended form holds more than one plain picture."""
    end = 8 + int.from_bytes(content[4:8], "little")
    return Chunks(end <= len(content), content[12:16] != b"VP8X")
