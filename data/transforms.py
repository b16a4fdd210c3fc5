"""From a decoded image to the input of the network.

Images are uint8 [H, W, 3] in OpenCV's own order, BGR; inputs are float32 [C, size, size] in the
colour order and with the normalization that a `Preprocessing` names; C is 3, or 1 for grey images.
The augmentation of training comes before, in augment.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np

from utils import UserError

_INTERPOLATION = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a network's input; travels with its weights.

    Attributes:
        color: order of the channels, "RGB" or "BGR".
        mean, std: mean and standard deviation of each channel, in that order, for values from 0 to
            255.
        size: side of the input in pixels.
        interpolation: "bilinear" or "bicubic".
        crop_ratio: side of the centre crop over the short side that the image is resized to.
        channels: number of channels of the input: 1 for grey values, whose mean and standard
            deviation are the averages of those of the colours; with more than 3, those of the
            colours repeat in order.
    """

    color: str = "RGB"
    mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    size: int = 224
    interpolation: str = "bilinear"
    crop_ratio: float = 0.875
    channels: int = 3

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        valid = (
            self.color in ("RGB", "BGR")
            and len(self.mean) == len(self.std) == 3
            and min(self.std) > 0
            and self.size >= 1
            and self.interpolation in _INTERPOLATION
            and 0 < self.crop_ratio <= 1
            and self.channels >= 1
        )
        if not valid:
            raise ValueError(f"{self} makes no sense")

    def bgr(self, values: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return `mean` or `std` in the channel order of images, which is BGR."""
        first, second, third = values
        return (third, second, first) if self.color == "RGB" else (first, second, third)

    def per_channel(self, values: tuple[float, float, float]) -> np.ndarray:
        """Return `mean` or `std` for each channel of the input, float64 [C]."""
        if self.channels == 1:
            return np.array([np.mean(values)])
        return np.array(values)[np.arange(self.channels) % 3]

    @cached_property
    def _table(self) -> np.ndarray:
        """What each of the 256 values becomes in each channel of the output: float32 [C, 256]."""
        mean, std = self.per_channel(self.mean), self.per_channel(self.std)
        scale, shift = (1 / std).astype(np.float32), (-mean / std).astype(np.float32)
        return np.arange(256, dtype=np.float32) * scale[:, None] + shift[:, None]

    def normalize(self, image: np.ndarray) -> np.ndarray:
        """Return an image, uint8 BGR [H, W, 3], as input of the network, float32 [C, H, W]."""
        out = np.empty((1, self.channels, *image.shape[:2]), np.float32)
        self.normalize_all([image], out)
        return out[0]

    def normalize_all(self, images: Iterable[np.ndarray], out: np.ndarray) -> None:
        """Normalize N images, uint8 BGR [H, W, 3], into `out`, float32 [N, C, H, W].

        A table of the 256 values is twice as fast as multiplying and adding. Raises UserError for
        a network that takes neither colours nor grey values.
        """
        if self.channels == 1:
            for image, (target,) in zip(images, out, strict=True):
                cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), self._table, target)
            return
        if self.channels != 3:
            raise UserError(
                f"the network takes inputs of {self.channels} channels, but an image file gives 3 "
                "colours or 1 grey value; call such a network from Python, with arrays of your own"
            )
        planes = list(np.empty(out.shape[1:], np.uint8))  # of one image after the other
        channels = planes[::-1] if self.color == "RGB" else planes
        for image, target in zip(images, out, strict=True):
            cv2.split(image, planes)
            for plane, table, channel in zip(channels, self._table, target, strict=True):
                cv2.LUT(plane, table, channel)

    def pixels(self, normalized: np.ndarray) -> np.ndarray:
        """Invert `normalize`: return float32 [C, H, W] as an image, uint8 BGR [H, W, 3]."""
        std, mean = self.per_channel(self.std), self.per_channel(self.mean)
        chw = normalized * std[:, None, None] + mean[:, None, None]
        if self.channels == 1:
            chw = np.repeat(chw, 3, axis=0)
        hwc = np.clip(np.rint(chw), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        return np.ascontiguousarray(hwc[:, :, ::-1] if self.color == "RGB" else hwc)

    @property
    def short_side(self) -> int:
        """Pixels that an image's short side is resized to: 256 for a size of 224.

        It is size / crop_ratio, rounded to an even number as BaseCls does.
        """
        if self.crop_ratio == 1:
            return self.size
        return int(self.size / self.crop_ratio / 2 + 0.5) * 2

    def evaluation(self, image: np.ndarray) -> np.ndarray:
        """Return the normalized `evaluation_crop` of an image, float32 [C, size, size]."""
        return self.normalize(self.evaluation_crop(image))

    def evaluation_crop(self, image: np.ndarray) -> np.ndarray:
        """Return the centre crop of an image resized to `short_side`, uint8 BGR [size, size, 3]."""
        short = self.short_side
        height, width = image.shape[:2]
        scale = short / min(height, width)
        if scale != 1:
            height, width = (max(short, round(side * scale)) for side in (height, width))
            image = self.resize(image, width, height)
        top, left = (height - self.size) // 2, (width - self.size) // 2
        return image[top : top + self.size, left : left + self.size]

    def resize(
        self, image: np.ndarray, width: int, height: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the image, uint8 [H, W, 3], at `width` x `height` by this interpolation."""
        return cv2.resize(
            image, (width, height), dst=out, interpolation=_INTERPOLATION[self.interpolation]
        )


# Preprocessing of the checkpoints of BaseCls and of the older MegEngine port, which do not say it.
BASECLS = Preprocessing("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
