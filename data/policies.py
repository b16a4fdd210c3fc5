"""Policies: the operations of image_ops.py that are done to an image, how often and how strongly.

AutoAugment (Cubuk et al., CVPR 2019) has pairs that were found by search; RandAugment (Cubuk et
al., 2020) draws operations at random. Strengths are levels from 0 to 10, and what a level means for
each operation follows timm, whose names for policies are understood: "v0" and
"rand-m9-mstd0.5-inc1".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from utils import UserError

from . import image_ops

Operation = tuple[str, float, float]  # name, probability, level


@dataclass(frozen=True)
class Background:
    """What geometric operations show around the picture, and how they interpolate.

    Attributes:
        fill: colour, BGR.
        interpolation: "bilinear" or "bicubic".
    """

    fill: image_ops.Color
    interpolation: str


# ---------------------------------------------------------------- what a level means


def _geometric(function: Callable, largest: float) -> Callable:
    """Return an operation by an amount of up to `largest`, at level 10, to either side."""

    def apply(
        image: np.ndarray, level: float, rng: np.random.Generator, background: Background
    ) -> np.ndarray:
        amount = level / 10 * largest * _sign(rng)
        return function(image, amount, background.fill, background.interpolation)

    return apply


def _plain(function: Callable, *argument: Callable[[float], int]) -> Callable:
    return lambda image, level, rng, background: function(image, *(of(level) for of in argument))


def _enhance(function: Callable) -> Callable:
    """Return an operation by a factor of 0.1 at level 0 to 1.9 at level 10; 5 changes nothing."""
    return lambda image, level, rng, background: function(image, 0.1 + level / 10 * 1.8)


def _enhance_increasing(function: Callable) -> Callable:
    """Return an operation by a factor of 1 at level 0, and of 0.1 or 1.9 at level 10."""

    def apply(
        image: np.ndarray, level: float, rng: np.random.Generator, background: Background
    ) -> np.ndarray:
        return function(image, max(0.1, 1 + level / 10 * 0.9 * _sign(rng)))

    return apply


def _sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


_GEOMETRIC = {
    "rotate": _geometric(image_ops.rotate, 30),  # degrees
    "shear_x": _geometric(image_ops.shear_x, 0.3),
    "shear_y": _geometric(image_ops.shear_y, 0.3),
    "translate_x": _geometric(image_ops.translate_x, 0.45),  # of the width
    "translate_y": _geometric(image_ops.translate_y, 0.45),
}
_ENHANCE = {
    "color": image_ops.saturation,
    "contrast": image_ops.contrast,
    "brightness": image_ops.brightness,
    "sharpness": image_ops.sharpness,
}
_AUTO_CONTRAST, _EQUALIZE, _INVERT = (
    _plain(function) for function in (image_ops.auto_contrast, image_ops.equalize, image_ops.invert)
)
_SOLARIZE_ADD = _plain(image_ops.solarize_add, lambda level: min(128, int(level / 10 * 110)))

OPERATIONS: dict[str, Callable] = {
    "auto_contrast": _AUTO_CONTRAST,
    "equalize": _EQUALIZE,
    "invert": _INVERT,
    "posterize": _plain(image_ops.posterize, lambda level: min(8, int(level / 10 * 4))),
    "solarize": _plain(image_ops.solarize, lambda level: min(256, int(level / 10 * 256))),
    "solarize_add": _SOLARIZE_ADD,
    **{name: _enhance(function) for name, function in _ENHANCE.items()},
    **_GEOMETRIC,
}
# the same operations, but never weaker at a higher level ("inc1")
INCREASING: dict[str, Callable] = {
    **OPERATIONS,
    "posterize": _plain(image_ops.posterize, lambda level: max(0, 4 - int(level / 10 * 4))),
    "solarize": _plain(image_ops.solarize, lambda level: max(0, 256 - int(level / 10 * 256))),
    **{name: _enhance_increasing(function) for name, function in _ENHANCE.items()},
}
RANDAUGMENT = list(OPERATIONS)  # 15 of them

# ---------------------------------------------------------------- policies


@dataclass(frozen=True)
class AutoAugment:
    """Do one of the pairs of operations, chosen at random, each with its probability.

    `probability` is that of doing any at all.
    """

    pairs: tuple[tuple[Operation, ...], ...]
    probability: float = 1.0

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, background: Background
    ) -> np.ndarray:
        """Return the changed image; both are uint8 BGR [H, W, 3]."""
        if self.probability < 1 and rng.random() >= self.probability:
            return image
        for name, probability, level in self.pairs[rng.integers(len(self.pairs))]:
            if rng.random() < probability:
                image = OPERATIONS[name](image, level, rng, background)
        return image


@dataclass(frozen=True)
class RandAugment:
    """Do `count` of 15 operations, each with `probability` and a level about `magnitude`.

    Attributes:
        deviation: standard deviation of the level; infinite: evenly between 0 and `magnitude`.
        largest: the level is cut to 0 and this.
        increasing: a higher level never changes an image less.
    """

    magnitude: float = 10
    count: int = 2
    probability: float = 0.5
    deviation: float = 0
    largest: float = 10
    increasing: bool = False

    def __call__(
        self, image: np.ndarray, rng: np.random.Generator, background: Background
    ) -> np.ndarray:
        """Return the changed image; both are uint8 BGR [H, W, 3]."""
        operations = INCREASING if self.increasing else OPERATIONS
        for name in rng.choice(RANDAUGMENT, self.count):
            if rng.random() < self.probability:
                image = operations[name](image, self.level(rng), rng, background)
        return image

    def level(self, rng: np.random.Generator) -> float:
        """Return a random level, from 0 to `largest`."""
        if math.isinf(self.deviation):
            level = rng.uniform(0, self.magnitude)
        else:
            level = rng.normal(self.magnitude, self.deviation) if self.deviation else self.magnitude
        return min(max(level, 0), self.largest)


# name -> why it is no longer there, and what to use
REMOVED = {"original": "no recipe uses it; use v0, the AutoAugment policy of TensorFlow's models"}

_KEYS: dict[str, tuple[str, Callable[[str], Any]]] = {
    "m": ("magnitude", float),
    "n": ("count", int),
    "p": ("probability", float),
    "mstd": ("deviation", lambda text: math.inf if float(text) > 100 else float(text)),
    "mmax": ("largest", float),
    "inc": ("increasing", lambda text: bool(int(text))),
}


def policy(name: str) -> AutoAugment | RandAugment | None:
    """Return the policy of a name: None for "none", AutoAugment for "v0".

    "v0-p0.3" is AutoAugment for three of ten images.

    RandAugment is "rand" with any of -m (level), -n (number of operations), -p (probability), -mstd
    (standard deviation of the level, or "inf"), -mmax (largest level) and -inc1 (a higher level
    never changes an image less). Raises UserError for any other name.
    """
    if name == "none":
        return None
    base, _, share = name.partition("-p")
    if base in PAIRS and re.fullmatch(r"|0?\.\d+|1", share) and not name.endswith("-p"):
        return AutoAugment(PAIRS[base], float(share or 1))
    if name in REMOVED:
        raise UserError(f"the augmentation policy {name!r} was removed: {REMOVED[name]}")
    head, *parts = name.split("-")
    settings: dict[str, Any] = {}
    for part in parts if head == "rand" else [name]:
        match: Any = re.fullmatch(r"([a-z]*)(.*)", part)  # never None: it fits any line
        key, text = match.groups()
        if key.endswith("inf"):
            key, text = key.removesuffix("inf"), "inf"
        try:
            field, kind = _KEYS[key]
            settings[field] = kind(text)
        except (KeyError, ValueError):
            raise UserError(
                f"there is no augmentation policy {name!r} (see {part!r}); use none, "
                f"{', '.join(PAIRS)}, or one like rand-m9-n2-mstd0.5-inc1"
            ) from None
    return RandAugment(**settings)


def _pairs(text: str) -> tuple[tuple[Operation, ...], ...]:
    """Parse one pair per line: "name probability level + name probability level"."""

    def operation(part: str) -> Operation:
        name, probability, level = part.split()
        return name, float(probability), float(level)

    return tuple(tuple(map(operation, line.split("+"))) for line in text.strip().splitlines())


PAIRS = {
    # the policy in TensorFlow's TPU models, which BaseCls used too
    # (its posterize at level 2 leaves a black image)
    "v0": _pairs("""
        equalize 0.8 1 + shear_y 0.8 4
        color 0.4 9 + equalize 0.6 3
        color 0.4 1 + rotate 0.6 8
        solarize 0.8 3 + equalize 0.4 7
        solarize 0.4 2 + solarize 0.6 2
        color 0.2 0 + equalize 0.8 8
        equalize 0.4 8 + solarize_add 0.8 3
        shear_x 0.2 9 + rotate 0.6 8
        color 0.6 1 + equalize 1.0 2
        invert 0.4 9 + rotate 0.6 0
        equalize 1.0 9 + shear_y 0.6 3
        color 0.4 7 + equalize 0.6 0
        posterize 0.4 6 + auto_contrast 0.4 7
        solarize 0.6 8 + color 0.6 9
        solarize 0.2 4 + rotate 0.8 9
        rotate 1.0 7 + translate_y 0.8 9
        shear_x 0.0 0 + solarize 0.8 4
        shear_y 0.8 0 + color 0.6 4
        color 1.0 0 + rotate 0.6 2
        equalize 0.8 4 + equalize 0.0 8
        equalize 1.0 4 + auto_contrast 0.6 2
        shear_y 0.4 7 + solarize_add 0.6 7
        posterize 0.8 2 + solarize 0.6 10
        solarize 0.6 8 + equalize 0.6 1
        color 0.8 6 + rotate 0.4 5
    """),
}
