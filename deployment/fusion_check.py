"""Check that a network computes the same function before and after fusion."""

from __future__ import annotations

from os import PathLike

from models import equivalence
from models.equivalence import Equivalence

import megengine.module as M
import numpy as np

from . import float64


def compare(model: M.Module, images: np.ndarray) -> Equivalence:
    """Compare both forms of a network, in float64 where they differ in float32.

    Args:
        model: a network in train form.
        images: float32 [N, C, H, W]; the first alone is for float64, which takes long.
    """
    return float64.confirmed(equivalence.compare(model, images), model, images[:1])


def refusal(path: str | PathLike, check: Equivalence) -> str:
    """Return why the network of a file is not saved, as the end of a sentence."""
    return (
        f"fusing {path} moves the logits by {check.relative_error:.1e} of the largest, above "
        f"{equivalence.TOLERANCE:.0e}; check whether its weights and batch-norm statistics are "
        "those of a trained network"
    )
