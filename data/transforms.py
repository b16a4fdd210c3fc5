"""From a decoded image to the input of the network.

Images are uint8 [H, W, 3] in OpenCV's own order, BGR; inputs are float32 [C, size, size] in the
colour order and with the normalization that a `Preprocessing` names; C is 3, or 1 for grey images.
The augmentation of training comes before, in augment.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from utils import UserError, brief

from . import long_images, resizing

COLOR_ORDERS = ("RGB", "BGR")
LARGEST = 8192  # side of the input in pixels, so that no file asks for all memory


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
        resize_backend: whose resizing, with its rounding of sizes and offsets: "pillow", which
            averages over all pixels where it shrinks (antialiasing), as torchvision and timm use
            it; or "opencv", which looks at the nearest 4 or 16 pixels alone, as BaseCls uses it.
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
    resize_backend: str = "opencv"  # that of checkpoints from before this field
    channels: int = 3

    def __post_init__(self) -> None:
        """Raise ValueError for values that are not possible."""
        valid = (
            self.color in COLOR_ORDERS
            and len(self.mean) == len(self.std) == 3
            and all(map(math.isfinite, (*self.mean, *self.std)))
            and min(self.std) > 0
            and isinstance(self.size, int)
            and 1 <= self.size <= LARGEST
            and self.interpolation in resizing.INTERPOLATIONS
            and 0 < self.crop_ratio <= 1
            and self.resize_backend in resizing.BACKENDS
            and self.channels >= 1
        )
        if not valid:
            raise ValueError(f"{brief(vars(self))} makes no sense")

    def bgr(self, values: tuple[float, float, float]) -> tuple[float, float, float]:
        """Return `mean` or `std` in the channel order of images, which is BGR."""
        first, second, third = values
        return (third, second, first) if self.color == "RGB" else (first, second, third)

    def in_color_order(self, color: str) -> Preprocessing:
        """Return this preprocessing with channels in the order `color`, "RGB" or "BGR"."""
        if color == self.color:
            return self
        return replace(self, color=color, mean=self.mean[::-1], std=self.std[::-1])

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

        It is size / crop_ratio, rounded down as timm does, or to an even number as BaseCls does.
        """
        if self.crop_ratio == 1:
            return self.size
        if self.resize_backend == "pillow":
            return math.floor(self.size / self.crop_ratio)
        return int(self.size / self.crop_ratio / 2 + 0.5) * 2

    def evaluation(self, image: np.ndarray) -> np.ndarray:
        """Return the normalized `evaluation_crop` of an image, float32 [C, size, size]."""
        return self.normalize(self.evaluation_crop(image))

    def evaluation_crop(self, image: np.ndarray) -> np.ndarray:
        """Return the centre crop of an image resized to `short_side`, uint8 BGR [size, size, 3].

        With "pillow", the long side is rounded down and the offsets of the crop to the nearest
        number, halves to the even one, as torchvision's Resize and CenterCrop do; with "opencv",
        the other way round.
        """
        short, size = self.short_side, self.size
        top, left, height, width = long_images.middle(image.shape[0], image.shape[1], short)
        image = image[top : top + height, left : left + width]
        shortest = min(height, width)
        if shortest != short:
            if self.resize_backend == "pillow":
                height, width = (short * side // shortest for side in (height, width))
            else:
                scale = short / shortest
                height, width = (max(short, round(side * scale)) for side in (height, width))
            image = self.resize(image, width, height)
        if self.resize_backend == "pillow":
            top, left = (round((side - size) / 2) for side in (height, width))
        else:
            top, left = ((side - size) // 2 for side in (height, width))
        return image[top : top + size, left : left + size]

    def resize(self, image: np.ndarray, width: int, height: int) -> np.ndarray:
        """Return the image, uint8 [H, W, 3], resized by this backend and interpolation."""
        resize = resizing.by_pillow if self.resize_backend == "pillow" else resizing.by_opencv
        return resize(image, width, height, self.interpolation)

    def resize_for_training(
        self, image: np.ndarray, width: int, height: int, out: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the image, in `out`, as `resize` does or, with "pillow", nearly and faster."""
        fast = resizing.antialiased if self.resize_backend == "pillow" else resizing.by_opencv
        return fast(image, width, height, self.interpolation, out)


# Preprocessing of the checkpoints of BaseCls and of the older MegEngine port, which do not say it.
BASECLS = Preprocessing("BGR", (103.53, 116.28, 123.675), (57.375, 57.12, 58.395))
# Preprocessing of networks that were trained with PyTorch: torchvision's transforms, or timm's.
TORCHVISION = Preprocessing(resize_backend="pillow")
