"""Drawing lines of text on an image."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WIDTH, _LONGEST = 320, 4096  # pixels: smallest width, so that text is legible; longest side
_LINES = 20  # lines of text that fit in the height, unless the image is too narrow for them


def fitted(image: np.ndarray) -> np.ndarray:
    """Return an image in the size in which `labelled` draws it, if that is smaller."""
    height, width = image.shape[:2]
    factor = _LONGEST / max(height, width)
    if factor >= 1:
        return image
    width, height = (max(1, round(side * factor)) for side in (width, height))
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def labelled(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Return a copy of an image with lines of text in its upper left corner, on a dark ground.

    Images are uint8 BGR [H, W, 3]. A small image is enlarged, a huge one reduced. OpenCV writes
    ASCII only: other letters become "?".
    """
    lines = [line.encode("ascii", "replace").decode() for line in lines]
    image = fitted(image)
    height, width = image.shape[:2]
    factor = max(1, min(-(-_WIDTH // width), _LONGEST // max(height, width)))
    width, height = width * factor, height * factor
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)  # always a copy
    sizes = [cv2.getTextSize(line, _FONT, 1, 1)[0] for line in lines]  # at scale 1
    longest, line_height = max(w for w, _ in sizes), 1.6 * max(h for _, h in sizes)
    fits = min(0.95 * width / longest, height / (len(lines) + 1) / line_height)
    scale = min(fits, max(width, height) / _LINES / line_height)
    step = scale * line_height
    margin = round(step / 4)
    bottom, right = round(step * len(lines)) + 2 * margin, round(scale * longest) + 2 * margin
    image[:bottom, :right] = image[:bottom, :right] // 3
    for number, line in enumerate(lines, start=1):
        corner = (margin, round(step * number))
        thick = max(1, round(2 * scale))
        cv2.putText(image, line, corner, _FONT, scale, (255, 255, 255), thick, cv2.LINE_AA)
    return image
