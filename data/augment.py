"""What training does to an image, drawn anew in every epoch.

Images are uint8 BGR [H, W, 3]. Everything random comes from the generator that is given, so that
the same seed, epoch and image give the same pixels in whichever process they are made.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from utils import UserError

from . import image_ops
from .decoding import decode, decode_crop
from .jpeg import Box
from .policies import Surroundings, policy
from .transforms import Preprocessing


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation; the defaults are the usual ones for ImageNet.

    The steps on images are done in this order; the settings from mixup on are for mixing.py and the
    loader.

    Attributes:
        crop_scale: part of the image's area that the random resized crop takes, from and to.
        padding_crop: if above 0, instead: pad by so many black pixels and crop at random; for
            CIFAR-10.
        affine: instead: turn by up to 10 degrees, scale by up to 10 % and move by up to 6 % of the
            side; for digits.
        random_interpolation: bilinear or bicubic by chance, and not as the preprocessing says.
        flip: probability of mirroring left and right.
        color_jitter: brightness, contrast and saturation change by a factor of 1 - x to 1 + x; not
            beside a policy, as in timm.
        auto_augment: name of a policy of policies.py; "none" for none.
        random_erasing: probability of erasing a rectangle of 2 to 33 % of the area (Zhong et al.,
            AAAI 2020).
        erasing_mode: what it is filled with: "const", the mean colour; "rand", a random colour;
            "pixel", a random colour a pixel. Random values have the mean and the deviation of the
            normalization, cut to 0 to 255.
        erasing_count: rectangles at most, which share the area.
        mixup, cutmix: parameter of the Beta distribution of how much is mixed; 0 for not at all.
        mix_prob: probability that a batch is mixed.
        mix_switch_prob: probability of cutmix and not mixup, where both are on.
        repeats: how often an epoch's images appear in it, each time augmented anew (Hoffer et al.,
            CVPR 2020); an epoch is as long as ever, and so has fewer different images.
    """

    crop_scale: tuple[float, float] = (0.08, 1.0)
    padding_crop: int = 0
    affine: bool = False
    random_interpolation: bool = False
    flip: float = 0.5
    color_jitter: float = 0.0
    auto_augment: str = "none"
    random_erasing: float = 0.0
    erasing_mode: str = "pixel"
    erasing_count: int = 1
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_prob: float = 1.0
    mix_switch_prob: float = 0.5
    repeats: int = 1

    def __post_init__(self):
        policy(self.auto_augment)  # a wrong name is an error here, and not in a worker
        if self.erasing_mode not in ERASING_MODES:
            raise UserError(
                f"there is no erasing mode {self.erasing_mode!r}; use {', '.join(ERASING_MODES)}"
            )


ERASING_MODES = ("const", "rand", "pixel")


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
    if augmentation.random_interpolation:
        chosen = "bicubic" if rng.random() < 0.5 else "bilinear"
        preprocessing = replace(preprocessing, interpolation=chosen)
    if augmentation.affine:
        _random_affine(image, rng, preprocessing, out)
    elif augmentation.padding_crop:
        _padding_crop(image, rng, augmentation.padding_crop, preprocessing, out)
    else:
        _random_resized_crop(image, rng, augmentation.crop_scale, preprocessing, out)
    if rng.random() < augmentation.flip:
        cv2.flip(out, 1, dst=out)
    operations = _cached_policy(augmentation.auto_augment)
    if operations is not None:
        mean = preprocessing.bgr(preprocessing.mean)
        around = Surroundings(tuple(map(round, mean)), preprocessing.interpolation)
        out[:] = operations(out, rng, around)
    elif augmentation.color_jitter:
        out[:] = color_jitter(out, augmentation.color_jitter, rng)
    if rng.random() < augmentation.random_erasing:
        erase(out, augmentation.erasing_mode, augmentation.erasing_count, rng, preprocessing)


_cached_policy = functools.cache(policy)


def crop_box(height: int, width: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """A random box of `scale` of the area and of aspect 3/4 to 4/3; Szegedy et al., CVPR 2015."""
    smallest, largest = scale
    for _ in range(10):
        area = height * width * (smallest + (largest - smallest) * rng.random())
        aspect = (4 / 3) ** (2 * rng.random() - 1)
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            break
    else:  # a very long image: its centre
        h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    top, left = int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1))
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


def _padding_crop(
    image: Path | str | np.ndarray,
    rng: np.random.Generator,
    padding: int,
    preprocessing: Preprocessing,
    out: np.ndarray,
) -> None:
    """As for CIFAR-10 in He et al., CVPR 2016, where it is 4 pixels around an image of 32."""
    if not isinstance(image, np.ndarray):
        image = decode(image)
    size = preprocessing.size
    if image.shape[:2] != (size, size):
        image = preprocessing.resize(image, size, size)
    image = cv2.copyMakeBorder(image, *[padding] * 4, cv2.BORDER_CONSTANT, value=0)
    top, left = rng.integers(2 * padding + 1, size=2)
    out[:] = image[top : top + size, left : left + size]


def color_jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast and saturation, in random order, each by a random factor of
    1 - strength (not below 0) to 1 + strength. As torchvision's ColorJitter without the hue."""
    operations = (image_ops.brightness, image_ops.contrast, image_ops.saturation)
    for chosen in rng.permutation(len(operations)):
        factor = rng.uniform(max(0, 1 - strength), 1 + strength)
        image = operations[chosen](image, factor)
    return image


def erase(
    image: np.ndarray, mode: str, count: int, rng: np.random.Generator, preprocessing: Preprocessing
) -> None:
    """Fill 1 to `count` rectangles of `image`, each of 2 to 33 % of the area over their number and
    of aspect 0.3 to 1 / 0.3; where none fits in ten tries, none."""
    height, width = image.shape[:2]
    mean, std = (preprocessing.bgr(values) for values in (preprocessing.mean, preprocessing.std))
    number = int(rng.integers(1, count + 1))
    for _ in range(number):
        for _ in range(10):
            area = rng.uniform(0.02, 1 / 3) * height * width / number
            aspect = math.exp(rng.uniform(math.log(0.3), math.log(1 / 0.3)))
            h, w = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if h < height and w < width:
                break
        else:
            continue
        top, left = rng.integers(height - h + 1), rng.integers(width - w + 1)
        shape = {"const": None, "rand": 3, "pixel": (h, w, 3)}[mode]
        noise = 0 if shape is None else rng.standard_normal(shape, np.float32)
        values = np.rint(np.float32(mean) + np.float32(std) * noise)
        image[top : top + h, left : left + w] = np.clip(values, 0, 255)
