"""Make a board's input of an image, and classes of its output.

This file is copied into the kits: it needs numpy and OpenCV alone, and Python 3.7. Images are uint8
BGR [H, W, 3], as OpenCV reads them; `network` is the content of a kit's network.json.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

_BITS = 22  # of the fractions of Pillow's weights


def read_image(file: str | Path) -> np.ndarray | None:
    """Return the image in a file of any name, uint8 BGR [H, W, 3].

    None is returned if it cannot be read, and for a JPEG whose end is missing.
    """
    try:  # cv2.imread would end the process where a name is no UTF-8
        content = np.fromfile(str(file), np.uint8)
        return None if _is_cut(content.tobytes()) else cv2.imdecode(content, cv2.IMREAD_COLOR)
    except (OSError, cv2.error):  # also for more pixels than OpenCV takes
        return None


def _is_cut(content: bytes) -> bool:
    """Return whether it is a JPEG without its end, of which OpenCV would make up the rest."""
    if content[:2] != b"\xff\xd8":
        return False
    position = 2  # the segments before the first scan may hold a small picture with an end
    while content[position : position + 1] == b"\xff":
        marker = content[position + 1 : position + 2]
        if marker == b"\xda":
            break
        if marker == b"\xff":  # a byte that fills a gap
            position += 1
        elif marker == b"\x01" or b"\xd0" <= marker <= b"\xd8":  # without a length
            position += 2
        else:
            position += 2 + int.from_bytes(content[position + 2 : position + 4], "big")
    return content.find(b"\xff\xd9", position) < 0


def evaluation_crop(image: np.ndarray, network: dict[str, Any]) -> np.ndarray:
    """Return the centre crop of an image resized to the short side, uint8 BGR [size, size, 3].

    These are the pixels on which the accuracy of the network is measured.
    """
    short, size = network["short_side"], network["size"]
    image = _middle(image, short)
    height, width = image.shape[:2]
    shortest = min(height, width)
    pillow = network["resize_backend"] == "pillow"
    if shortest != short:
        if pillow:
            height, width = short * height // shortest, short * width // shortest
            image = _resize_as_pillow(image, width, height, network["interpolation"])
        else:
            scale = short / shortest
            height, width = (max(short, round(side * scale)) for side in (height, width))
            ways = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}
            how = ways[network["interpolation"]]
            image = cv2.resize(image, (width, height), interpolation=how)
    if pillow:
        top, left = round((height - size) / 2), round((width - size) / 2)
    else:
        top, left = (height - size) // 2, (width - size) // 2
    return image[top : top + size, left : left + size]


def _middle(image: np.ndarray, short: int) -> np.ndarray:
    """Return the part of an image to resize for a centre crop: less than all of a very long one.

    Enlarged to the short side, its long side has at most 2^15 pixels.
    """
    height, width = image.shape[:2]
    low = min(height, width)
    excess = max(height, width) - (1 << 15) * low // short
    if low >= short or excess <= 0:
        return image
    cut = excess // (2 * low) * low  # at each end; it becomes a multiple of `short`
    return image[cut : height - cut] if height > width else image[:, cut : width - cut]


def letterbox(image: np.ndarray, network: dict[str, Any]) -> np.ndarray:
    """Return the whole image, scaled to fit and padded with grey 127, uint8 BGR [size, size, 3]."""
    size = network["size"]
    height, width = image.shape[:2]
    scale = min(size / height, size / width)
    inner = cv2.resize(image, (max(1, int(width * scale)), max(1, int(height * scale))))
    padded = np.full((size, size, 3), 127, np.uint8)
    top, left = (size - inner.shape[0]) // 2, (size - inner.shape[1]) // 2
    padded[top : top + inner.shape[0], left : left + inner.shape[1]] = inner
    return padded


def _resize_as_pillow(image: np.ndarray, width: int, height: int, interpolation: str) -> np.ndarray:
    """Return the image as Pillow resizes it, antialiased, to the same bits."""
    if width != image.shape[1]:
        columns = np.ascontiguousarray(image.transpose(1, 0, 2))
        image = _resize_height(columns, width, interpolation).transpose(1, 0, 2)
    if height != image.shape[0]:
        image = _resize_height(np.ascontiguousarray(image), height, interpolation)
    return image


def _resize_height(image: np.ndarray, height: int, interpolation: str) -> np.ndarray:
    """Return uint8 [H, W, 3] resized to [height, W, 3], in integers as Pillow computes."""
    radius, kernel = {"bilinear": (1, _triangle), "bicubic": (2, _cubic)}[interpolation]
    scale = image.shape[0] / height
    stretch = max(scale, 1.0)
    center = (np.arange(height) + 0.5) * scale
    first = np.maximum(0, (center - radius * stretch + 0.5).astype(int))
    last = np.minimum(image.shape[0], (center + radius * stretch + 0.5).astype(int))
    taps = np.arange((last - first).max())
    weights = kernel((taps + first[:, None] - center[:, None] + 0.5) / stretch)
    weights[taps >= (last - first)[:, None]] = 0
    weights *= 1.0 / weights.sum(axis=1, keepdims=True)
    weights = np.trunc(weights * (1 << _BITS) + np.copysign(0.5, weights)).astype(np.int32)
    rows = image.reshape(len(image), -1)
    total = np.full((height, rows.shape[1]), 1 << (_BITS - 1), np.int32)
    for tap in taps:
        total += rows[np.minimum(first + tap, len(rows) - 1)] * weights[:, tap, None]
    return np.clip(total >> _BITS, 0, 255).astype(np.uint8).reshape(height, -1, 3)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0.0, 1 - np.abs(x))


def _cubic(x: np.ndarray, a: float = -0.5) -> np.ndarray:
    x = np.abs(x)
    near = ((a + 2) * x - (a + 3)) * x * x + 1
    far = (((x - 5) * x + 8) * x - 4) * a
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


def nv12(image: np.ndarray) -> np.ndarray:
    """Return an image of even sides as NV12, uint8 [H * W * 3 / 2]: Y, then U and V in turns.

    OpenCV converts to BT.601's limited range, in which black is Y = 16 and white is Y = 235, and
    takes U and V from the top left one of four pixels.
    """
    planes = cv2.cvtColor(image, cv2.COLOR_BGR2YUV_I420).reshape(-1)
    area = image.shape[0] * image.shape[1]
    colors = planes[area:].reshape(2, -1)
    return np.concatenate([planes[:area], colors.T.reshape(-1)])


def in_network_order(image: np.ndarray, network: dict[str, Any]) -> np.ndarray:
    """Return uint8 [H, W, 3] with the colours in the order that the network takes."""
    return np.ascontiguousarray(image[:, :, ::-1] if network["color"] == "RGB" else image)


def normalized(image: np.ndarray, network: dict[str, Any]) -> np.ndarray:
    """Return an image as the network's input, float32 [1, 3, H, W]."""
    mean, std = (np.array(network[key]) for key in ("mean", "std"))
    scale, shift = (1 / std).astype(np.float32), (-mean / std).astype(np.float32)
    pixels = in_network_order(image, network).astype(np.float32) * scale + shift
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]


def best_classes(logits: np.ndarray, count: int) -> list[tuple[int, float]]:
    """Return the (class, probability) pairs of the `count` best classes of logits [classes].

    The probability of a single class is a sigmoid. Raises ValueError for numbers that are not
    finite.
    """
    logits = np.asarray(logits, np.float64).reshape(-1)
    if not np.isfinite(logits).all():
        raise ValueError("the network computes numbers that are not finite")
    if len(logits) == 1:
        odds = math.exp(-abs(logits[0]))
        return [(0, (1 if logits[0] >= 0 else odds) / (1 + odds))]
    powers = np.exp(logits - logits.max())
    probabilities = powers / powers.sum()
    order = np.argsort(-probabilities, kind="stable")[:count]
    return [(int(i), float(probabilities[i])) for i in order]


def with_lines(image: np.ndarray, lines: Sequence[str]) -> np.ndarray:
    """Return a copy of the image with lines of text on it.

    It is enlarged to 400 pixels, but not beyond 4,000 on its long side.
    """
    factor = max(1.0, min(400 / min(image.shape[:2]), 4000 / max(image.shape[:2])))
    picture = cv2.resize(image, None, fx=factor, fy=factor)
    scale = min(picture.shape[:2]) / 800
    step = int(36 * scale) + 4
    for number, line in enumerate(lines, start=1):
        for color, thickness in (((0, 0, 0), 4), ((255, 255, 255), 1)):
            where = (8, number * step)
            font = cv2.FONT_HERSHEY_SIMPLEX
            cv2.putText(picture, line, where, font, scale, color, thickness, cv2.LINE_AA)
    return picture
