"""Accuracy of a network on images as a camera board sees them: through NV12, and letterboxed.

The images go through the pixels of the RDK kit's script, and back to RGB as the board's compiled
network does, once with the range of values that OpenCV writes and once with the full range, which
D-Robotics' model zoo leaves set. The network computes in float.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from models.equivalence import agreement

import numpy as np

from data import readers
from data.evaluation import Score
from deployment import network
from deployment.boards import kit
from deployment.boards.scripts import pixels
from utils import UserError
from weights import catalog, stated_preprocessing

from .report import Rows

_BATCH = 25
CROPS = {"centre crop": pixels.evaluation_crop, "letterbox": pixels.letterbox}
COLORS = {"RGB": None, "NV12, video range": False, "NV12 read as full range": True}


def from_nv12(packed: np.ndarray, side: int, full_range: bool) -> np.ndarray:
    """Return NV12, uint8 [side * side * 3 / 2], as BGR, uint8 [side, side, 3].

    The matrix is BT.601's; colours are not interpolated. Luma is from 0 to 255 with `full_range`,
    otherwise from 16 to 235.
    """
    luma = packed[: side * side].reshape(side, side).astype(np.float32)
    chroma = packed[side * side :].reshape(side // 2, side // 2, 2).astype(np.float32) - 128
    if not full_range:
        luma, chroma = (luma - 16) * (255 / 219), chroma * (255 / 224)
    u, v = np.repeat(np.repeat(chroma, 2, axis=0), 2, axis=1).transpose(2, 0, 1)
    blue, red = luma + 1.772 * u, luma + 1.402 * v
    green = luma - (0.114 * 1.772 * u + 0.299 * 1.402 * v) / 0.587
    return np.clip(np.rint(np.stack([blue, green, red], axis=-1)), 0, 255).astype(np.uint8)


def accuracy(
    model: str, data: str, stated: stated_preprocessing.Statements, step: Callable[[int], object]
) -> Rows:
    """Return a row with the accuracy for each way from an image to the network.

    Args:
        model: checkpoint or file of export.py, as `catalog.locate` takes it.
        data: labelled validation images.
        stated: preprocessing that the flags say.
        step: called with the number of images after each batch.

    Raises UserError for a network that takes no squares with even sides, of colours.
    """
    net = network.load(catalog.locate(model), stated=stated)
    side = net.size[0]
    if net.preprocessing.channels != 3 or net.size[1] != side or side % 2:
        raise UserError(f"{model} does not take square colour images of an even side, as NV12 has")
    settings = kit.network_settings(net.preprocessing)
    dataset = readers.open_validation(data, net.num_classes, net.class_ids)
    ways = [(crop, color) for crop in CROPS for color in COLORS]
    scores = {way: Score() for way in ways}
    agreed = dict.fromkeys(ways, 0.0)
    for start in range(0, len(dataset), _BATCH):
        numbers = range(start, min(start + _BATCH, len(dataset)))
        images = [dataset.image(i) for i in numbers]
        labels = dataset.labels[numbers.start : numbers.stop]
        first: np.ndarray | None = None
        for crop, color in ways:
            seen = (_seen(CROPS[crop](image, settings), COLORS[color]) for image in images)
            inputs = np.concatenate([pixels.normalized(image, settings) for image in seen])
            logits = np.asarray(net.run(inputs))
            first = logits if first is None else first
            scores[crop, color].add(logits, labels, 0.0)
            agreed[crop, color] += agreement(first, logits) * len(images)
        step(len(images))
    return [_row(net, *way, scores[way], agreed[way]) for way in ways]


def _seen(crop: np.ndarray, full_range: bool | None) -> np.ndarray:
    """Return a crop as the network on the board sees it; None is for RGB."""
    if full_range is None:
        return crop
    return from_nv12(pixels.nv12(crop), len(crop), full_range)


def _row(
    net: network.Network, crop: str, color: str, score: Score, agreed: float
) -> dict[str, Any]:
    return {
        "arch": net.arch,
        "crop": crop,
        "input": color,
        "images": score.total,
        "top1": round(score.top1, 2),
        "top5": round(score.top5, 2),
        "agreement": round(100 * agreed / max(1, score.total), 2),
    }
