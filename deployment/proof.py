"""Whether a written file computes what the live network does, on random images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from data.transforms import Preprocessing
from models.equivalence import TOLERANCE


class Proof(NamedTuple):
    """The worst over all batches."""

    relative_error: float  # the largest error over the largest logit
    argmax_agreement: float  # share of the images with the same best class

    @property
    def holds(self) -> bool:
        """Whether the two are the same function; a NaN anywhere is a no."""
        return self.relative_error <= TOLERANCE and self.argmax_agreement == 1


def compare(
    network: Callable[[np.ndarray], np.ndarray],
    file: Callable[[np.ndarray], np.ndarray],
    expects: tuple[Preprocessing, Preprocessing],
    size: tuple[int, int],
    batches: Sequence[int],
) -> Proof:
    """Run both on the same random pictures, each with the preprocessing that it expects.

    The pictures are normally distributed once normalized for the network, as those of verify.py,
    but rounded to uint8.

    Args:
        network, file: [N, 3, *size] -> logits [N, classes].
        expects: preprocessing of the network and of the file.
        size: height and width in pixels.
        batches: the N to compare at.
    """
    rng = np.random.default_rng(0)
    errors, agreement = [], []
    for n in batches:
        noise = rng.standard_normal((n, 3, *size)).astype(np.float32)
        pictures = [expects[0].pixels(image) for image in noise]
        expected, found = (
            run(np.stack([preprocessing.normalize(picture) for picture in pictures]))
            for run, preprocessing in zip((network, file), expects, strict=True)
        )
        with np.errstate(invalid="ignore", divide="ignore"):  # the error is then NaN
            errors.append(np.abs(expected - found).max() / np.abs(expected).max())
        agreement.append((expected.argmax(1) == found.argmax(1)).mean())
    return Proof(float(np.max(errors)), float(min(agreement)))
