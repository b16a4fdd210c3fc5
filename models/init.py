"""Filling new weights, or leaving them at zero when others are about to replace them.

Blocks with a shortcut start as little more than that shortcut, as a ResNet does whose residual
branches end in scales of 0 (Goyal et al., arXiv 1706.02677). Where branches of equal strength are
added and a ReLU follows, a few blocks leave nothing of an image, and training first has to undo it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import megengine as mge
import megengine.module as M

RESIDUAL_STD = 0.28  # of a residual branch beside a shortcut of standard deviation 1
SHORTCUT_SHIFT = 0.8  # in standard deviations: a ReLU's zeros are about 0.7 below its mean

_fills_weights = ContextVar("fills_weights", default=True)


@contextmanager
def uninitialized() -> Iterator[None]:
    """Make layers with zeros for weights in this thread, which takes no time.

    To be used as `with init.uninitialized():` where a checkpoint's weights will replace the zeros.
    """
    token = _fills_weights.set(False)
    try:
        yield
    finally:
        _fills_weights.reset(token)


def normal(weight: mge.Tensor, std: float) -> None:
    """Fill `weight` with normal numbers of mean 0, drawn by MegEngine's generator."""
    if _fills_weights.get():
        M.init.normal_(weight, 0, std)


def small_residual(*norms: M.BatchNorm2d) -> None:
    """Scale the batch norms whose sum is a residual branch so that it starts at `RESIDUAL_STD`."""
    for norm in norms:
        M.init.fill_(norm.weight, RESIDUAL_STD / math.sqrt(len(norms)))


def shift_above_zero(norm: M.BatchNorm2d) -> None:
    """Shift the batch norm of a shortcut so that the ReLU behind it changes few of its values."""
    M.init.fill_(norm.bias, SHORTCUT_SHIFT)
