"""What training does to an image, drawn anew in every epoch.

Images are uint8 BGR [H, W, 3]. Everything random comes from the generator that is given, so that
the same seed, epoch and image give the same pixels in whichever process they are made.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from .decoding import decode, decode_crop
from .jpeg import Box
from .transforms import Preprocessing


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation; the defaults are the usual ones for ImageNet.

    Attributes:
        crop_scale: part of the image's area that the random resized crop takes, from and to.
        affine: instead of cropping, turn by up to 10 degrees, scale by up to 10 % and move by up to
            6 % of the side; for digits.
        flip: probability of mirroring left and right.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    affine: bool = False
    flip: float = 0.5


def augment(
    image: Path | str | np.ndarray,
    rng: np.random.Generator,
    augmentation: Augmentation,
    preprocessing: Preprocessing,
    out: np.ndarray,
) -> None:
    """Write an image file or a decoded image, augmented, to `out`, uint8 [size, size, 3].

    Raises BadImageError for a broken file.
    """
    if augmentation.affine:
        _random_affine(image, rng, preprocessing, out)
    else:
        _random_resized_crop(image, rng, augmentation.crop_scale, preprocessing, out)
    if rng.random() < augmentation.flip:
        cv2.flip(out, 1, dst=out)


def crop_box(height: int, width: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A random box of `scale` of the area and of aspect 3/4 to 4/3; Szegedy et al., CVPR 2015."""
    for _ in range(10):
        area = height * width * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            break
    else:  # a very long image: its centre
        h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return Box(top, left, h, w)


def _random_resized_crop(
    image: Path | str | np.ndarray,
    rng: np.random.Generator,
    scale: tuple[float, float],
    preprocessing: Preprocessing,
    out: np.ndarray,
) -> None:
    size = preprocessing.size
    if isinstance(image, np.ndarray):
        box = crop_box(*image.shape[:2], scale, rng)
        part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    else:
        part = decode_crop(image, lambda h, w: crop_box(h, w, scale, rng), size)
    preprocessing.resize(part, size, size, out)


def _random_affine(
    image: Path | str | np.ndarray,
    rng: np.random.Generator,
    preprocessing: Preprocessing,
    out: np.ndarray,
) -> None:
    if not isinstance(image, np.ndarray):
        image = decode(image)
    size = preprocessing.size
    image = preprocessing.resize(image, size, size)
    angle, scale = rng.uniform(-10, 10), rng.uniform(0.9, 1.1)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), angle, scale)
    matrix[:, 2] += rng.uniform(-0.06 * size, 0.06 * size, 2)
    cv2.warpAffine(image, matrix, (size, size), dst=out)
