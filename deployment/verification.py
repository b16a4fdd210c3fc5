"""Write a file only if its outputs equal the live network's on random images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, BinaryIO, NamedTuple

from models.equivalence import TOLERANCE

import megengine as mge
import megengine.module as M
import numpy as np

from data.transforms import Preprocessing
from utils import write_atomically

from .tracing import ExportError

# float32 [N, C, H, W] -> logits [N, classes], or a list of several outputs
Runner = Callable[[np.ndarray], np.ndarray | list[np.ndarray]]
Sizes = Sequence[tuple[int, tuple[int, int]]]  # (number of images, (height, width)) to compare on


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

    def __str__(self) -> str:
        if self.argmax_agreement is None:
            return f"its outputs differ by {self.relative_error:.1e} of the largest"
        return (
            f"its logits differ by {self.relative_error:.1e} of the largest from the network's, "
            f"and {1 - self.argmax_agreement:.0%} of the best classes"
        )


def write_verified(
    path: str | PathLike,
    content: bytes,
    load: Callable[[str], Runner],
    model: M.Module,
    model_input: Preprocessing,
    file_input: Preprocessing,
    sizes: Sizes,
    tolerance: float = TOLERANCE,
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

    Raises ExportError when the outputs differ and UserError when the file cannot be written; an
    existing file at `path` is then untouched.
    """
    check = None

    def write(file: BinaryIO) -> None:
        nonlocal check
        file.write(content)
        file.flush()
        check = compare(model, load(file.name), model_input, file_input, sizes, tolerance)
        if not check.holds:
            raise ExportError(
                f"{path} was not written: {check}; "
                "a network that has not been trained can be so sensitive to rounding"
            )

    write_atomically(path, write)
    return check


def compare(
    model: M.Module,
    run: Runner,
    model_input: Preprocessing,
    file_input: Preprocessing,
    sizes: Sizes,
    tolerance: float = TOLERANCE,
) -> EquivalenceCheck:
    """Compare `model` and `run` on the same random images, each with its own preprocessing.

    The images are whole numbers from 0 to 255; normalized for the network, they are normally
    distributed up to rounding, like those of verify.py.
    """
    rng = np.random.default_rng(0)
    errors, agreement = [], []
    mean, std = _per_channel(model_input)
    for n, size in sizes:
        noise = rng.standard_normal((n, model_input.channels, *size), np.float32)
        pixels = np.clip(np.rint(noise * std + mean), 0, 255)
        images = _normalized(model_input, pixels)
        if file_input.color != model_input.color:
            pixels = pixels[:, ::-1]
        outputs = [tensor.numpy() for tensor in _listed(model(mge.Tensor(images)))]
        results = _listed(run(_normalized(file_input, pixels)))
        for expected, actual in zip(outputs, results, strict=True):
            with np.errstate(invalid="ignore", divide="ignore"):  # the error is then NaN
                errors.append(np.abs(expected - actual).max() / np.abs(expected).max())
            if expected.ndim == 2:
                agreement.append((expected.argmax(1) == actual.argmax(1)).mean())
    worst = float(min(agreement)) if agreement else None
    return EquivalenceCheck(float(np.max(errors)), worst, tolerance)


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
