"""Images for calibration."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
from tqdm import tqdm

from data import readers
from data.decoding import ImageFile, decode
from data.decoding import read as content_of
from data.transforms import Preprocessing
from utils import UserError

T = TypeVar("T")
FEW = 16  # images, below which the ranges of the activations are a matter of chance


def files(source: str | Path, count: int) -> list[ImageFile]:
    """Return `count` images of a folder or an archive, evenly from the sorted files.

    Warns where they are fewer than `FEW`. Raises UserError when there is no such folder or archive,
    or no image in it.
    """
    available = readers.find_images(source)
    if not available:
        raise UserError(f"there are no images in {source}; give some; 64 suffice")
    chosen: list[ImageFile] = evenly(available, count)
    different = len({_digest(file) for file in chosen})
    if different < FEW:
        kind = "" if different == len(chosen) else "different "
        print(
            f"warning: {different} {kind}calibration images are few, and the ranges of the "
            f"activations a matter of chance; give {FEW} or more, better 64, by --calibration and "
            "--images",
            file=sys.stderr,
        )
    return chosen


@overload
def evenly(items: np.ndarray, count: int) -> np.ndarray: ...


@overload
def evenly(items: Sequence[T], count: int) -> list[T]: ...


def evenly(items: Sequence[T] | np.ndarray, count: int) -> list[T] | np.ndarray:
    """Return `count` of some items, evenly from all of them; all if there are fewer."""
    count = min(count, len(items))
    chosen = [i * len(items) // count for i in range(count)]
    return items[chosen] if isinstance(items, np.ndarray) else [items[i] for i in chosen]


def read(files: Sequence[ImageFile], preprocessing: Preprocessing) -> np.ndarray:
    """Return the images, float32 [N, C, size, size], preprocessed as for an evaluation.

    Raises UserError when a file is broken, or every image is of a single colour.
    """
    return np.stack([preprocessing.normalize(crop) for crop in crops(files, preprocessing)])


def crops(files: Sequence[ImageFile], preprocessing: Preprocessing) -> list[np.ndarray]:
    """Return the images, uint8 BGR [size, size, C], resized and cropped as for an evaluation.

    Raises UserError when a file is broken, or every image is of a single colour.
    """
    progress = tqdm(files, desc="calibration images", leave=False, disable=None)
    cropped = [preprocessing.evaluation_crop(decode(file)) for file in progress]
    if all((crop == crop[0, 0]).all() for crop in cropped):
        raise UserError(
            f"each of the {len(cropped)} images for calibration is of one colour; give photographs "
            "like those that the network will see"
        )
    return cropped


def assert_disjoint(
    calibration: Sequence[ImageFile], test: Sequence[ImageFile] | np.ndarray
) -> None:
    """Raise UserError when a test image has the same content as a calibration image."""
    if isinstance(test, np.ndarray):  # pixels in memory, which no file has
        return
    seen = {_digest(file): file for file in calibration}
    for file in tqdm(test, desc="comparing files", leave=False, disable=None):
        if (same := seen.get(_digest(file))) is not None:
            raise UserError(
                f"the test image {file} is the calibration image {same}; "
                "calibrate on other images than those the accuracy is measured on"
            )


def _digest(file: ImageFile) -> bytes:
    return hashlib.sha256(content_of(file)).digest()
