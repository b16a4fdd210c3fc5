"""Writing a file only if it computes what the live network does, on random images."""

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


class Proof(NamedTuple):
    """The worst over all batches."""

    relative_error: float  # the largest error over the largest logit
    argmax_agreement: float  # share of the images with the same best class

    @property
    def holds(self) -> bool:
        """Whether the two are the same function; a NaN anywhere is a no."""
        return self.relative_error <= TOLERANCE and self.argmax_agreement == 1


def write_verified(
    path: str | PathLike,
    content: bytes,
    load: Callable[[str], Runner],
    model: M.Module,
    expects: Preprocessing,
    takes: Preprocessing,
    size: tuple[int, int],
    batches: Sequence[int],
) -> Proof:
    """Write `content` to a temporary file, run that, and give it its name if it does as `model`.

    Args:
        path: the name; a file that is there is replaced.
        content: the file's.
        load: makes a function of a file.
        model: the network, in evaluation mode.
        expects, takes: how images go into `model`, and into the file.
        size: height and width of the images in pixels.
        batches: numbers of images to compare at.

    Raises ExportError when they differ, UserError when the file cannot be written; whatever was at
    `path` is then untouched.
    """
    proof = None

    def write(file: BinaryIO) -> None:
        nonlocal proof
        file.write(content)
        file.flush()
        proof = compare(model, load(file.name), expects, takes, size, batches)
        if not proof.holds:
            raise ExportError(
                f"{path} was not written: its logits differ by {proof.relative_error:.1e} of the "
                f"largest from the network's, and {1 - proof.argmax_agreement:.0%} of the best "
                "classes; a network that has not been trained can be so sensitive to rounding"
            )

    write_atomically(path, write)
    return proof


def compare(
    model: M.Module,
    run: Runner,
    expects: Preprocessing,
    takes: Preprocessing,
    size: tuple[int, int],
    batches: Sequence[int],
) -> Proof:
    """Compare on the same random pictures, each side with its preprocessing.

    The pictures are normally distributed once normalized for the network, as verify.py's are, but
    rounded to uint8.
    """
    rng = np.random.default_rng(0)
    errors, agreement = [], []
    for n in batches:
        noise = rng.standard_normal((n, 3, *size), np.float32)
        pictures = [expects.pixels(image) for image in noise]
        expected = model(mge.Tensor(np.stack([expects.normalize(p) for p in pictures]))).numpy()
        found = run(np.stack([takes.normalize(p) for p in pictures]))
        with np.errstate(invalid="ignore", divide="ignore"):  # the error is then NaN
            errors.append(np.abs(expected - found).max() / np.abs(expected).max())
        agreement.append((expected.argmax(1) == found.argmax(1)).mean())
    return Proof(float(np.max(errors)), float(min(agreement)))
