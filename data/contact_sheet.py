"""Contact sheet of a batch: one picture that shows the images as the network gets them."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

import utils

from . import mixing
from .datasets import Dataset
from .loader import Loader
from .transforms import Preprocessing

_TILE, _CAPTION, _GAP, _COLUMNS = 160, 34, 8, 8  # pixels; tiles per row


def write_samples(
    dataset: Dataset, preprocessing: Preprocessing, seed: int, file: Path, skip_bad: bool = False
) -> str:
    """Write a contact sheet of one small batch as it is trained on; return a line about it."""
    loader = Loader(dataset, preprocessing, min(64, len(dataset)), workers=0, skip_bad=skip_bad)
    images, labels = next(loader.training(seed, epoch=0))
    if not len(images):
        raise utils.UserError(
            "none of the first images could be read; leave out --skip-bad-images to see the name "
            "of the first of them"
        )
    augment = loader.augmentation(epoch=0)
    if augment.mixup or augment.cutmix:
        rng = np.random.default_rng((seed, 0))  # that of the first step
        images, labels = mixing.mix(images, labels, len(dataset.classes), augment, rng)
    png = contact_sheet(images, labels, dataset.classes, preprocessing)
    utils.write_atomically(file, lambda out: out.write(png))
    return f"{len(images)} samples of {dataset.name}: {file}"


def contact_sheet(
    images: np.ndarray, labels: np.ndarray, classes: list[str], preprocessing: Preprocessing
) -> bytes:
    """Return a PNG file of the images, 8 in a row, with their class names below.

    Args:
        images: float32 [N, C, H, W], normalized as `preprocessing` says.
        labels: int [N], or soft targets of data.mixing.mix, float32 [N, classes], of which the two
            largest are written.
        classes: names of the classes.
        preprocessing: the normalization of the images.
    """
    rows = -(-len(images) // _COLUMNS)
    step = np.array([_TILE + _CAPTION + _GAP, _TILE + _GAP])
    sheet = np.full((*(step * (rows, min(_COLUMNS, len(images))) + _GAP), 3), 255, np.uint8)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        top, left = step * divmod(number, _COLUMNS) + _GAP
        enlarge = image.shape[-1] < _TILE
        sheet[top : top + _TILE, left : left + _TILE] = cv2.resize(
            preprocessing.pixels(image),
            (_TILE, _TILE),
            interpolation=cv2.INTER_NEAREST if enlarge else cv2.INTER_AREA,
        )
        for line, text in enumerate(_caption(label, classes)):
            corner = (int(left), int(top) + _TILE + 13 + 15 * line)
            cv2.putText(
                sheet, text, corner, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA
            )
    return cv2.imencode(".png", sheet)[1].tobytes()


def _caption(label: np.ndarray, classes: list[str]) -> list[str]:
    """Return one line of text, or two for a mixed label."""
    if np.ndim(label) == 0:
        return [_short(classes[label], 22)]
    largest = np.argsort(-label, kind="stable")[:2]
    return [
        f"{100 * label[index]:.0f} % {_short(classes[index], 16)}"
        for index in largest
        if label[index] > 0
    ]


def _short(name: str, length: int) -> str:
    name = name.encode("ascii", "replace").decode()  # OpenCV writes ASCII only
    return name if len(name) <= length else name[: length - 2] + ".."
