"""Filling new weights, or leaving them at zero when others are about to replace them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import megengine as mge
import megengine.module as M

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
