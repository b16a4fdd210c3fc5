"""Images for calibration."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.datasets import image_files
from data.decoding import decode
from data.transforms import Preprocessing
from utils import UserError
from weights.files import sha256


def files(folder: str | PathLike, count: int) -> list[Path]:
    """Return `count` image files of a folder and its subfolders, evenly from the sorted files.

    Raises UserError when there is no folder or no image in it.
    """
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder}; give one with images for calibration")
    available = image_files(folder)
    if not available:
        raise UserError(f"there are no images in {folder}; give a folder with some; 64 suffice")
    count = min(count, len(available))
    return [available[i * len(available) // count] for i in range(count)]


def read(files: Sequence[Path], preprocessing: Preprocessing) -> np.ndarray:
    """Return the images, float32 [N, 3, size, size], preprocessed as for an evaluation.

    Raises UserError when a file is broken, or every image is of a single colour.
    """
    crops = [
        preprocessing.evaluation_crop(decode(file))
        for file in tqdm(files, desc="calibration images", leave=False, disable=None)
    ]
    if all((crop == crop[0, 0]).all() for crop in crops):
        raise UserError(
            f"each of the {len(crops)} images for calibration is of one colour; give photographs "
            "like those that the network will see"
        )
    return np.stack([preprocessing.normalize(crop) for crop in crops])


def assert_disjoint(calibration: Sequence[Path], test: Sequence[Path]) -> None:
    """Raise UserError when a test image has the same content as a calibration image."""
    seen = {sha256(file): file for file in calibration}
    for file in tqdm(test, desc="comparing files", leave=False, disable=None):
        if (same := seen.get(sha256(file))) is not None:
            raise UserError(
                f"the test image {file} is the calibration image {same}; "
                "calibrate on other images than those the accuracy is measured on"
            )
