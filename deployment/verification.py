"""Write a file only if its outputs equal the live network's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, BinaryIO, NamedTuple

from models.equivalence import TOLERANCE, agreement

import cv2
import megengine as mge
import megengine.module as M
import numpy as np

from data.transforms import Preprocessing
from utils import write_atomically

from .tracing import ExportError

# float32 [N, C, H, W] -> logits [N, classes], or a list of several outputs
Runner = Callable[[np.ndarray], np.ndarray | list[np.ndarray]]
Sizes = Sequence[tuple[int, tuple[int, int]]]  # (number of images, (height, width)) to compare on
# (preprocessing, number, size) -> whole numbers from 0 to 255 [N, C, H, W], in its channel order
Pixels = Callable[[Preprocessing, int, tuple[int, int]], np.ndarray]
_PART = 16  # images that the live network computes at once, so that a large batch fits in memory


class EquivalenceCheck(NamedTuple):
    """Comparison of a file with the live network; the worst values over all batches."""

    relative_error: float  # largest absolute error divided by the largest absolute output
    argmax_agreement: float | None  # fraction of the images with the same best class, of logits
    tolerance: float = TOLERANCE

    @property
    def holds(self) -> bool:
        """Whether both compute the same function; False if any output is NaN.

        Where a larger error is allowed, so are classes that exchange their places within it.
        """
        same_classes = self.argmax_agreement in (None, 1) or self.tolerance > TOLERANCE
        return self.relative_error <= self.tolerance and same_classes

    @property
    def likely_reason(self) -> str:
        """What may be behind outputs that differ, for a message."""
        if not np.isfinite(self.relative_error):
            return "the file computes numbers that are not finite"
        if self.tolerance > TOLERANCE:
            return (
                f"half precision costs more than {self.tolerance:g} of the largest; export it "
                "without --half"
            )
        return (
            "a network that has not been trained can be so sensitive to rounding; if its weights "
            "are random, give trained ones by --model"
        )

    def __str__(self) -> str:
        if self.argmax_agreement is None:
            return f"its outputs differ by {self.relative_error:.1e} of the largest"
        return (
            f"its logits differ by {self.relative_error:.1e} of the largest from the network's, "
            f"and {1 - self.argmax_agreement:.0%} of the best classes"
        )


def check_sizes(size: tuple[int, int], free_size: bool, batches: tuple[int, ...]) -> Sizes:
    """Return the numbers and sizes of the images on which a file is compared with the network."""
    sizes = [(batch, size) for batch in batches]
    if free_size:
        sizes.append((batches[-1], (size[0] + 32, size[1] + 64)))
    return sizes


def write_verified(
    path: str | PathLike,
    content: bytes,
    load: Callable[[str], Runner],
    model: M.Module,
    model_input: Preprocessing,
    file_input: Preprocessing,
    sizes: Sizes,
    tolerance: float = TOLERANCE,
    pixels: Pixels | None = None,
) -> EquivalenceCheck:
    """Write `content` to a temporary file, compare it with `model`, and rename it if they agree.

    Args:
        path: final name of the file; an existing file is replaced.
        content: content of the file.
        load: returns a function that runs the file of a given name.
        model: live network, in evaluation mode.
        model_input, file_input: preprocessing of the images that `model` and the file take.
        sizes: numbers and sizes of the images to compare.
        tolerance: largest relative error.
        pixels: makes the images; None for `random_pixels`.

    Raises ExportError when the outputs differ and UserError when the file cannot be written; an
    existing file at `path` is then untouched.
    """
    check: EquivalenceCheck | None = None

    def write(file: BinaryIO) -> None:
        nonlocal check
        file.write(content)
        file.flush()
        run = load(file.name)
        check = compare(model, run, model_input, file_input, sizes, tolerance, pixels)
        if not check.holds:
            raise ExportError(f"the exported file was not written: {check}; {check.likely_reason}")

    write_atomically(path, write)
    assert check is not None  # `write` has been called
    return check


def compare(
    model: M.Module,
    run: Runner,
    model_input: Preprocessing,
    file_input: Preprocessing,
    sizes: Sizes,
    tolerance: float = TOLERANCE,
    pixels: Pixels | None = None,
) -> EquivalenceCheck:
    """Compare `model` and `run` on the same images, each with its own preprocessing."""
    errors, agreements = [], []
    for n, size in sizes:
        values = (pixels or random_pixels)(model_input, n, size)
        images = _normalized(model_input, values)
        if file_input.color != model_input.color:
            values = values[:, ::-1]
        outputs = _outputs(model, images)
        results = _listed(run(_normalized(file_input, values)))
        for expected, actual in zip(outputs, results, strict=True):
            if not np.isfinite(expected).all():
                raise ExportError(
                    "the network computes numbers that are not finite; give the weights of a "
                    "training that did not diverge"
                )
            error, largest = np.abs(expected - actual).max(), np.abs(expected).max()
            with np.errstate(divide="ignore"):  # the error is infinite where the network gives 0
                errors.append(error / largest if error else 0)
            if expected.ndim == 2:
                agreements.append(agreement(expected, actual))
    worst = min(agreements, default=None)
    return EquivalenceCheck(float(np.max(errors)), worst, tolerance)


def _outputs(model: M.Module, images: np.ndarray) -> list[np.ndarray]:
    """Return the network's outputs for images, of which it computes a few at a time."""
    parts = [
        [tensor.numpy() for tensor in _listed(model(mge.Tensor(images[start : start + _PART])))]
        for start in range(0, len(images), _PART)
    ]
    return [np.concatenate(output) for output in zip(*parts, strict=True)]


def random_pixels(preprocessing: Preprocessing, n: int, size: tuple[int, int]) -> np.ndarray:
    """Return `Pixels` that are, normalized, normally distributed up to rounding, as verify.py's."""
    mean, std = _per_channel(preprocessing)
    shape = (n, preprocessing.channels, *size)
    noise = np.random.default_rng(0).standard_normal(shape, np.float32)
    return np.clip(np.rint(noise * std + mean), 0, 255)


def photographs(preprocessing: Preprocessing, n: int, size: tuple[int, int]) -> np.ndarray:
    """Return `Pixels` of parts of the two photographs that come with scikit-learn."""
    from sklearn.datasets import load_sample_images

    pictures = load_sample_images().images  # uint8 RGB [427, 640, 3]
    parts = []
    for i in range(n):
        top, left = 20 * i % 100, 100 * i % 320
        part = pictures[i % 2][top : top + 320, left : left + 320]
        parts.append(cv2.resize(part, size[::-1], interpolation=cv2.INTER_AREA))
    planes = np.stack(parts).transpose(0, 3, 1, 2).astype(np.float64)
    if preprocessing.color == "BGR":
        planes = planes[:, ::-1]
    if preprocessing.channels == 1:
        return np.rint(planes.mean(axis=1, keepdims=True))
    return planes[:, np.arange(preprocessing.channels) % 3]


def _per_channel(preprocessing: Preprocessing) -> list[np.ndarray]:
    """Return mean and standard deviation, each float64 [C, 1, 1]."""
    values = (preprocessing.mean, preprocessing.std)
    return [preprocessing.per_channel(value)[:, None, None] for value in values]


def _normalized(preprocessing: Preprocessing, pixels: np.ndarray) -> np.ndarray:
    """Return pixels [N, C, H, W], with channels in the network's order, as its input, float32."""
    mean, std = _per_channel(preprocessing)
    return np.ascontiguousarray((pixels - mean) / std, np.float32)


def _listed(outputs: Any) -> list:
    return list(outputs) if isinstance(outputs, tuple | list) else [outputs]
