"""Operations on one image, as Pillow's ImageOps and ImageEnhance define them.

Each takes uint8 BGR [H, W, 3] and returns a new image. The results equal Pillow's to the bit,
except those of the geometric operations: positions are rounded to 1/32 pixel, the edge of the image
is blended with the colour around it, and OpenCV's bicubic kernel has a = -0.75 (Pillow's -0.5).
"""

from __future__ import annotations

import math

import cv2
import numpy as np

from .resizing import INTERPOLATIONS

_values = np.arange(256)
Color = tuple[int, ...]  # of three channels

# ---------------------------------------------------------------- tables of the 256 values


def _apply(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Return the image with each value replaced by the table's: [256], or [256, 3] by channel."""
    table = np.clip(table, 0, 255).astype(np.uint8)
    return cv2.LUT(image, table[None] if table.ndim == 2 else table)


def invert(image: np.ndarray) -> np.ndarray:
    """Return the negative of the image."""
    return cv2.bitwise_not(image)


def posterize(image: np.ndarray, bits: int) -> np.ndarray:
    """Keep only the highest `bits`, 0 to 8, of each value."""
    return cv2.bitwise_and(image, np.full(4, 256 - (1 << (8 - bits)), np.float64))


def solarize(image: np.ndarray, threshold: int) -> np.ndarray:
    """Invert the values from `threshold` on."""
    return _apply(image, np.where(_values < threshold, _values, 255 - _values))


def solarize_add(image: np.ndarray, amount: int) -> np.ndarray:
    """Add `amount` to the values below 128."""
    return _apply(image, np.where(_values < 128, _values + amount, _values))


def auto_contrast(image: np.ndarray) -> np.ndarray:
    """Stretch the values of each channel to the range of 0 to 255."""
    low, high = image.min(axis=(0, 1)).astype(float), image.max(axis=(0, 1)).astype(float)
    flat = high <= low
    scale = np.where(flat, 1, 255 / np.where(flat, 1, high - low))
    return _apply(image, (_values[:, None] * scale - np.where(flat, 0, low) * scale).astype(int))


def equalize(image: np.ndarray) -> np.ndarray:
    """Equalize the histogram of each channel."""
    table = np.empty((256, 3), int)
    for channel in range(3):
        counts = np.bincount(image[..., channel].ravel(), minlength=256)
        step = (image.shape[0] * image.shape[1] - counts[counts.nonzero()[0][-1]]) // 255
        before = np.cumsum(counts) - counts
        table[:, channel] = (step // 2 + before) // step if step else _values
    return _apply(image, table)


# ---------------------------------------------------------------- enhancement


def brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Change the brightness: factor 0 gives black, 1 the image itself."""
    return _apply(image, (_values * factor).astype(int))


def contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Change the contrast: factor 0 gives the mean grey, 1 the image itself."""
    mean = int(_grey(image).mean() + 0.5)
    return _apply(image, (mean + factor * (_values - mean)).astype(int))


def saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Change the saturation: factor 0 gives a grey image, 1 the image itself."""
    return _blend(cv2.merge([_grey(image)] * 3), image, factor)


def sharpness(image: np.ndarray, factor: float) -> np.ndarray:
    """Change the sharpness: factor 0 smooths, 1 gives the image itself; border pixels stay."""
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    # in float, so as to round as Pillow does: halves up
    smooth = (cv2.filter2D(image, cv2.CV_32F, kernel / 13) + 0.5).astype(np.uint8)
    smooth[[0, -1]], smooth[:, [0, -1]] = image[[0, -1]], image[:, [0, -1]]
    return _blend(smooth, image, factor)


def _grey(image: np.ndarray) -> np.ndarray:
    """Return the luma of ITU-R BT.601, computed in 16-bit fixed point: uint8 [H, W]."""
    blue, green, red = (plane.astype(np.uint32) for plane in cv2.split(image))
    return ((red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16).astype(np.uint8)


def _blend(start: np.ndarray, end: np.ndarray, factor: float) -> np.ndarray:
    """Interpolate from `start` (factor 0) to `end` (1) and beyond, truncated to integers."""
    first = start.astype(np.float32)
    mixed = first + np.float32(factor) * (end.astype(np.float32) - first)
    return np.clip(mixed, 0, 255).astype(np.uint8)


# ---------------------------------------------------------------- geometry


def shear_x(image: np.ndarray, factor: float, fill: Color, interpolation: str) -> np.ndarray:
    """Shift each row to the left by `factor` times its number."""
    return _affine(image, (1, factor, 0, 0, 1, 0), fill, interpolation)


def shear_y(image: np.ndarray, factor: float, fill: Color, interpolation: str) -> np.ndarray:
    """Shift each column up by `factor` times its number."""
    return _affine(image, (1, 0, 0, factor, 1, 0), fill, interpolation)


def translate_x(image: np.ndarray, part: float, fill: Color, interpolation: str) -> np.ndarray:
    """Shift the image to the left by `part` of its width."""
    return _affine(image, (1, 0, part * image.shape[1], 0, 1, 0), fill, interpolation)


def translate_y(image: np.ndarray, part: float, fill: Color, interpolation: str) -> np.ndarray:
    """Shift the image up by `part` of its height."""
    return _affine(image, (1, 0, 0, 0, 1, part * image.shape[0]), fill, interpolation)


def rotate(image: np.ndarray, degrees: float, fill: Color, interpolation: str) -> np.ndarray:
    """Rotate the image counter-clockwise about its centre."""
    x, y = image.shape[1] / 2, image.shape[0] / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = (cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y)
    return _affine(image, matrix, fill, interpolation)


def _affine(
    image: np.ndarray, matrix: tuple[float, ...], fill: Color, interpolation: str
) -> np.ndarray:
    """Take each pixel (x, y) from (ax + by + c, dx + ey + f), where (0, 0) is an image's corner."""
    inverse = np.array(matrix, np.float64).reshape(2, 3)
    inverse[:, 2] += inverse[:, :2].sum(axis=1) / 2 - 0.5  # OpenCV's (0, 0) is a pixel's centre
    return cv2.warpAffine(
        image,
        inverse,
        image.shape[1::-1],
        flags=INTERPOLATIONS[interpolation] | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=fill,
    )
