"""The markers of a JPEG file: size, coding, and where the image ends (ITU-T T.81, Annex B)."""

from __future__ import annotations

import re
from typing import NamedTuple

_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
# baseline, extended and progressive; Huffman's and arithmetic coding
_LOSSY = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
_END, _SCAN, _APP1 = 0xD9, 0xDA, 0xE1
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
    position = 2
    while (match := _MARKER.search(content, position)) is not None:
        marker, position = match[1][0], match.end()
        if marker == _END:
            complete = has_scan
            break
        length = int.from_bytes(content[position : position + 2], "big")
        segment = content[position + 2 : position + length]
        if marker in _START_OF_FRAME and frame is None and len(segment) >= 6:
            height, width = segment[1] << 8 | segment[2], segment[3] << 8 | segment[4]
            frame = height, width, segment[5], segment[0] == 8 and marker in _LOSSY
        elif marker == _APP1 and not has_scan:
            has_metadata |= segment.startswith(b"Exif\0\0") or b"Orientation" in segment
        elif marker == _SCAN:
            has_scan = True
            if content.endswith(b"\xff\xd9"):  # as nearly all do; the way there is long
                complete = True
                break
        position += length
    if frame is None or not frame[0] or not frame[1]:
        return None
    return Header(*frame, has_metadata, complete)
