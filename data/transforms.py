"""From a decoded image to what the network sees, for training and for evaluation.

Images are uint8 [H, W, 3] in OpenCV's own order, BGR; what comes out is float32 [3, size, size] in
the colour order and with the normalization that a `Preprocessing` names.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

_INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a network's input; travels with its weights.

    Attributes:
        color: order of the channels, "RGB" or "BGR".
        mean, std: of each channel, in that order, on the scale of 0 to 255.
        size: side of the input in pixels.
        interpolation: "bilinear" or "bicubic".
        crop_ratio: side of the centre crop over the short side that the image is resized to.
    """

    color: str = "RGB"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    size: int = 224
    interpolation: str = "bilinear"
    crop_ratio: float = 0.875

    def __post_init__(self):
        """Raises ValueError for what is no preprocessing."""
        valid = (
            self.color in ("RGB", "BGR")
            and len(self.mean) == len(self.std) == 3
            and min(self.std) > 0
            and self.size >= 1
            and self.interpolation in _INTERPOLATION
            and 0 < self.crop_ratio <= 1
        )
        if not valid:
            raise ValueError(f"{self} makes no sense")

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """uint8 BGR [H, W, 3] -> float32 [3, H, W]."""
        if self.color == "RGB":
            image = image[:, :, ::-1]
        scale = (1 / np.array(self.std)).astype(np.float32)
        shift = (-np.array(self.mean) / np.array(self.std)).astype(np.float32)
        chw = image.transpose(2, 0, 1).astype(np.float32, order="C")
        chw *= scale[:, None, None]
        chw += shift[:, None, None]
        return chw

    def evaluation(self, image: np.ndarray) -> np.ndarray:
        """Short side to size / crop_ratio (rounded to even), centre crop, normalize.

        224 px: short side 256. The rounding is BaseCls's.
        """
        short = self.size
        if self.crop_ratio < 1:
            short = int(self.size / self.crop_ratio / 2 + 0.5) * 2
        height, width = image.shape[:2]
        scale = short / min(height, width)
        if scale != 1:
            height, width = (max(short, round(side * scale)) for side in (height, width))
            image = self.resize(image, width, height)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return self.normalize(image[top : top + self.size, left : left + self.size])

    def resize(self, image: np.ndarray, width: int, height: int) -> np.ndarray:
        """The image at `width` x `height`, by this preprocessing's interpolation."""
        return cv2.resize(image, (width, height), interpolation=_INTERPOLATION[self.interpolation])


# What BaseCls's and the older MegEngine checkpoints, which do not say, were trained with.
BASECLS = Preprocessing("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))


def random_resized_crop_flip(
    image: np.ndarray, rng: np.random.Generator, preprocessing: Preprocessing
) -> np.ndarray:
    """The usual ImageNet augmentation: a crop of 8 to 100 % of the area and of aspect 3/4 to 4/3,
    resized to the input, mirrored half the time. Source: Szegedy et al., CVPR 2015."""
    height, width = image.shape[:2]
    for _ in range(10):
        area = height * width * rng.uniform(0.08, 1)
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            break
    else:  # a very long image: its centre
        h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
    crop = image[top : top + h, left : left + w]
    image = preprocessing.resize(crop, preprocessing.size, preprocessing.size)
    return preprocessing.normalize(image[:, ::-1] if rng.random() < 0.5 else image)


def random_affine(
    image: np.ndarray, rng: np.random.Generator, preprocessing: Preprocessing
) -> np.ndarray:
    """For digits, which must not be mirrored: turned by up to 10 degrees, scaled by up to 10 %,
    moved by up to 6 % of the side."""
    size = preprocessing.size
    image = preprocessing.resize(image, size, size)
    angle, scale = rng.uniform(-10, 10), rng.uniform(0.9, 1.1)
    matrix = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), angle, scale)
    matrix[:, 2] += rng.uniform(-0.06 * size, 0.06 * size, 2)
    return preprocessing.normalize(cv2.warpAffine(image, matrix, (size, size)))
