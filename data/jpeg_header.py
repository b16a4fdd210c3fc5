"""The markers of a JPEG file: size, coding, and where the image ends (ITU-T T.81, Annex B)."""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# baseline, extended and progressive; Huffman's and arithmetic coding
_LOSSY = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1
_WITHOUT_LENGTH = {0x00, 0x01, *range(0xD0, 0xD9), 0xFF}
_FRAME = struct.Struct(">BHHB")  # bits, height, width, components
# a marker; not a stuffed byte or a restart marker, of which compressed data is full
_MARKER = re.compile(rb"\xff([^\x00\x01\xd0-\xd8\xff])")


class Header(NamedTuple):
    """What the markers of a JPEG say.

    Attributes:
        height, width: size as stored, in pixels.
        components: number of colours.
        lossy: of 8 bits, and made of blocks of coefficients: it can be decoded in part.
        has_metadata: there may be an orientation in it.
        complete: it has a scan, and its end is there; other data may follow.
    """

    height: int
    width: int
    components: int
    lossy: bool
    has_metadata: bool
    complete: bool


def read_header(content: bytes) -> Header | None:
    """Return the header of a JPEG file's content; None when it has no frame."""
    frame: tuple[int, int, int, bool] | None = None
    has_metadata = has_scan = complete = False
    position, size = 2, len(content)
    while position + 1 < size:
        marker = content[position + 1]
        if has_scan or content[position] != 0xFF or marker in _WITHOUT_LENGTH:
            match = _MARKER.search(content, position)
            if match is None:
                break
            position, marker = match.start(), match[1][0]
        if marker == _END:
            complete = has_scan
            break
        start = position + 4  # of the segment's content
        position += 2 + int.from_bytes(content[position + 2 : start], "big")
        if marker in _START_OF_FRAME and frame is None:
            if start + _FRAME.size > size:
                return None
            bits, height, width, components = _FRAME.unpack_from(content, start)
            frame = height, width, components, bits == 8 and marker in _LOSSY
            if content.endswith(b"\xff\xd9"):  # as nearly all do; the way there is long
                scan = content.find(b"\xff\xda", position)
                if scan >= 0 and content.find(b"\xff\xe1", position, scan) < 0:
                    complete = True
                    break
        elif marker == _APP1 and not has_scan:
            has_metadata |= content.startswith(b"Exif\0\0", start) or (
                content.find(b"Orientation", start, position) >= 0
            )
        elif marker == _SCAN:
            has_scan = True
    if frame is None or not frame[0] or not frame[1]:
        return None
    return Header(*frame, has_metadata, complete)
