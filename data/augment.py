"""The augmentation of training images, drawn at random anew in every epoch.

Images are uint8 BGR [H, W, 3]. Everything random comes from the generator that is passed, so
that the same seed, epoch and image give the same pixels in every process.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, replace

import cv2
import numpy as np

from utils import UserError

from . import by_epoch, image_ops
from .decoding import ImageFile, decode, decode_crop
from .jpeg import Box
from .policies import Background, policy
from .setting import setting
from .transforms import Preprocessing

ERASING_MODES = ("const", "rand", "pixel")


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation; the defaults are the usual ones for ImageNet.

    The steps on images are done in this order; the settings from mixup on are for mixing.py and the
    loader. Sources: random erasing is Zhong et al., AAAI 2020, with rectangles of 2 to 33 % of the
    area; repeated augmentation is Hoffer et al., CVPR 2020.

    A field may hold a text such as "0.2@0,0.5@30" for a value that changes by epoch; by_epoch.at
    returns the augmentation of an epoch, which is what everything but the loader takes.

    Attributes:
        size: side of the training images in pixels where it is not that of the evaluation; it has
            no flag of its own, as --size says both.
        affine: instead of a crop: turn by up to 10 degrees, scale by up to 10 % and move by up to
            6 % of the side; for digits. It has no flag.
    """

    GROUP = "augmentation"

    crop_scale: tuple[float, float] = setting(
        (0.08, 1.0),
        varies=True,
        above=0,
        at_most=1,
        metavar=("LOW", "HIGH"),
        by_epoch=True,
        help="range of the part of the image's area that the random resized crop takes "
        "(default: 0.08 1, without --data no crop)",
    )
    padding_crop: int = setting(
        0,
        varies=True,
        at_least=0,
        metavar="PIXELS",
        by_epoch=True,
        help="pad by this many black pixels and crop at random, instead of the random resized "
        "crop; 4 is usual for CIFAR-10",
    )
    affine: bool = False
    size: int | None = None
    random_interpolation: bool = setting(
        False, help="choose bilinear or bicubic interpolation at random for each image"
    )
    flip: float = setting(
        0.5,
        varies=True,
        at_least=0,
        at_most=1,
        metavar="P",
        by_epoch=True,
        help="probability of mirroring left and right (default: 0.5, without --data 0)",
    )
    color_jitter: float = setting(
        0.0,
        at_least=0,
        metavar="X",
        by_epoch=True,
        help="change brightness, contrast and saturation by factors of 1-X to 1+X; without effect "
        "beside --auto-augment, as in timm",
    )
    auto_augment: str = setting(
        "none",
        check=policy,
        metavar="POLICY",
        by_epoch=True,
        help="augmentation policy: none; v0 (AutoAugment; v0-p0.3: for 0.3 of the images); or "
        "RandAugment as in rand-m9-n2-mstd0.5-inc1: level 9, 2 operations, standard deviation 0.5 "
        "of the level, changes that grow with the level",
    )
    random_erasing: float = setting(
        0.0,
        at_least=0,
        at_most=1,
        metavar="P",
        by_epoch=True,
        help="probability of erasing a rectangle",
    )
    erasing_mode: str = setting(
        "pixel",
        choices=ERASING_MODES,
        help="what fills erased rectangles: the mean colour (const), a random colour (rand), or a "
        "random colour per pixel (pixel)",
    )
    erasing_count: int = setting(
        1,
        at_least=1,
        metavar="N",
        by_epoch=True,
        help="largest number of erased rectangles, which share the erased area",
    )
    mixup: float = setting(
        0.0,
        at_least=0,
        metavar="ALPHA",
        by_epoch=True,
        help="parameter of the Beta distribution from which mixup draws the share of each image; "
        "0: no mixup",
    )
    cutmix: float = setting(
        0.0,
        at_least=0,
        metavar="ALPHA",
        by_epoch=True,
        help="parameter of the Beta distribution from which cutmix draws the area of the box; "
        "0: no cutmix",
    )
    mix_prob: float = setting(
        1.0,
        at_least=0,
        at_most=1,
        metavar="P",
        by_epoch=True,
        help="probability that a batch is mixed by mixup or cutmix",
    )
    mix_switch_prob: float = setting(
        0.5,
        at_least=0,
        at_most=1,
        metavar="P",
        by_epoch=True,
        help="probability of cutmix instead of mixup where both are on",
    )
    repeats: int = setting(
        1,
        flag="repeated-augmentation",
        at_least=1,
        metavar="N",
        by_epoch=True,
        help="number of times that each image appears in an epoch, each time augmented anew; an "
        "epoch keeps its length, and so has fewer different images",
    )

    def __post_init__(self) -> None:
        for name in by_epoch.values(self.auto_augment):
            policy(name)  # a wrong name is an error here, and not in a worker
        if self.erasing_mode not in ERASING_MODES:
            raise UserError(
                f"there is no erasing mode {self.erasing_mode!r}; use {', '.join(ERASING_MODES)}"
            )


def augment(
    image: ImageFile | np.ndarray,
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
        background = Background(tuple(map(round, mean)), preprocessing.interpolation)
        out[:] = operations(out, rng, background)
    elif augmentation.color_jitter:
        out[:] = color_jitter(out, augmentation.color_jitter, rng)
    if rng.random() < augmentation.random_erasing:
        erase(out, augmentation.erasing_mode, augmentation.erasing_count, rng, preprocessing)


_cached_policy = functools.cache(policy)


def crop_box(height: int, width: int, scale: tuple[float, float], rng: np.random.Generator) -> Box:
    """Return a random box of `scale` of the area and an aspect ratio of 3/4 to 4/3.

    Source: Szegedy et al., Going Deeper with Convolutions, CVPR 2015.
    """
    smallest, largest = scale
    for _ in range(10):
        area = height * width * (smallest + (largest - smallest) * rng.random())
        aspect = (4 / 3) ** (2 * rng.random() - 1)
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            top, left = int(rng.random() * (height - h + 1)), int(rng.random() * (width - w + 1))
            return Box(top, left, h, w)
    # a very long image: its centre
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return Box((height - h) // 2, (width - w) // 2, h, w)


def _random_resized_crop(
    image: ImageFile | np.ndarray,
    rng: np.random.Generator,
    scale: tuple[float, float],
    preprocessing: Preprocessing,
    out: np.ndarray,
) -> None:
    size = preprocessing.size
    if isinstance(image, np.ndarray):
        height, width = image.shape[:2]
        box = crop_box(height, width, scale, rng)
        part = image[box.top : box.top + box.height, box.left : box.left + box.width]
    else:
        part = decode_crop(image, lambda h, w: crop_box(h, w, scale, rng), size)
    preprocessing.resize_for_training(part, size, size, out)


def _random_affine(
    image: ImageFile | np.ndarray,
    rng: np.random.Generator,
    preprocessing: Preprocessing,
    out: np.ndarray,
) -> None:
    if not isinstance(image, np.ndarray):
        image = decode(image)
    size = preprocessing.size
    image = preprocessing.resize_for_training(image, size, size)
    angle, scale = rng.uniform(-10, 10), rng.uniform(0.9, 1.1)
    matrix: np.ndarray = cv2.getRotationMatrix2D(((size - 1) / 2, (size - 1) / 2), angle, scale)
    matrix[:, 2] += rng.uniform(-0.06 * size, 0.06 * size, 2)
    cv2.warpAffine(image, matrix, (size, size), dst=out)


def _padding_crop(
    image: ImageFile | np.ndarray,
    rng: np.random.Generator,
    padding: int,
    preprocessing: Preprocessing,
    out: np.ndarray,
) -> None:
    """Pad and crop, as He et al., CVPR 2016, do for CIFAR-10 with 4 pixels around 32."""
    if not isinstance(image, np.ndarray):
        image = decode(image)
    size = preprocessing.size
    if image.shape[:2] != (size, size):
        image = preprocessing.resize_for_training(image, size, size)
    # the colour around it is black, as no other is given
    image = cv2.copyMakeBorder(image, padding, padding, padding, padding, cv2.BORDER_CONSTANT)
    top, left = rng.integers(2 * padding + 1, size=2)
    out[:] = image[top : top + size, left : left + size]


def color_jitter(image: np.ndarray, strength: float, rng: np.random.Generator) -> np.ndarray:
    """Return an image with changed brightness, contrast and saturation, in random order.

    Each changes by a random factor of 1 - strength (not below 0) to 1 + strength, as in
    torchvision's ColorJitter without the hue.
    """
    operations = (image_ops.brightness, image_ops.contrast, image_ops.saturation)
    for chosen in rng.permutation(len(operations)):
        factor = rng.uniform(max(0, 1 - strength), 1 + strength)
        image = operations[chosen](image, factor)
    return image


def erase(
    image: np.ndarray, mode: str, count: int, rng: np.random.Generator, preprocessing: Preprocessing
) -> None:
    """Fill 1 to `count` random rectangles of `image`.

    Together they take 2 to 33 % of the area; their aspect ratios are 0.3 to 1 / 0.3. One that does
    not fit in ten tries is left out.
    """
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
        values = np.rint(np.array(mean, np.float32) + np.array(std, np.float32) * noise)
        image[top : top + h, left : left + w] = np.clip(values, 0, 255)
