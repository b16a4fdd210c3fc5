"""Write a file only if its logits equal the live network's on random images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike
from typing import BinaryIO, NamedTuple

from models.equivalence import TOLERANCE

import megengine as mge
import megengine.module as M
import numpy as np

from data.transforms import Preprocessing
from utils import write_atomically

from .tracing import ExportError

Runner = Callable[[np.ndarray], np.ndarray]  # float32 [N, 3, H, W] -> logits [N, classes]


class EquivalenceCheck(NamedTuple):
    """Comparison of a file with the live network; the worst values over all batches."""

    relative_error: float  # largest absolute error divided by the largest absolute logit
    argmax_agreement: float  # fraction of the images with the same best class

    @property
    def holds(self) -> bool:
        """Whether both compute the same function; False if any logit is NaN."""
        return self.relative_error <= TOLERANCE and self.argmax_agreement == 1


def write_verified(
    path: str | PathLike,
    content: bytes,
    load: Callable[[str], Runner],
    model: M.Module,
    model_input: Preprocessing,
    file_input: Preprocessing,
    size: tuple[int, int],
    batches: Sequence[int],
) -> EquivalenceCheck:
    """Write `content` to a temporary file, compare it with `model`, and rename it if they agree.

    Args:
        path: final name of the file; an existing file is replaced.
        content: content of the file.
        load: returns a function that runs the file of a given name.
        model: live network, in evaluation mode.
        model_input, file_input: preprocessing of the images that `model` and the file take.
        size: height and width of the images in pixels.
        batches: batch sizes to compare.

    Raises ExportError when the logits differ and UserError when the file cannot be written; an
    existing file at `path` is then untouched.
    """
    check = None

    def write(file: BinaryIO) -> None:
        nonlocal check
        file.write(content)
        file.flush()
        check = compare(model, load(file.name), model_input, file_input, size, batches)
        if not check.holds:
            raise ExportError(
                f"{path} was not written: its logits differ by {check.relative_error:.1e} of the "
                f"largest from the network's, and {1 - check.argmax_agreement:.0%} of the best "
                "classes; a network that has not been trained can be so sensitive to rounding"
            )

    write_atomically(path, write)
    return check


def compare(
    model: M.Module,
    run: Runner,
    model_input: Preprocessing,
    file_input: Preprocessing,
    size: tuple[int, int],
    batches: Sequence[int],
) -> EquivalenceCheck:
    """Compare `model` and `run` on the same random images, each with its own preprocessing.

    The images are uint8; normalized for the network, they are normally distributed up to rounding,
    like those of verify.py.
    """
    rng = np.random.default_rng(0)
    errors, agreement = [], []
    for n in batches:
        noise = rng.standard_normal((n, 3, *size), np.float32)
        pictures = [model_input.pixels(image) for image in noise]
        expected = model(mge.Tensor(np.stack([model_input.normalize(p) for p in pictures]))).numpy()
        actual = run(np.stack([file_input.normalize(p) for p in pictures]))
        with np.errstate(invalid="ignore", divide="ignore"):  # the error is then NaN
            errors.append(np.abs(expected - actual).max() / np.abs(expected).max())
        agreement.append((expected.argmax(1) == actual.argmax(1)).mean())
    return EquivalenceCheck(float(np.max(errors)), float(min(agreement)))
