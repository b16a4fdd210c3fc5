"""Filling new weights, or leaving them at zero when others are about to take their place."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import megengine as mge
import megengine.module as M

_wanted = True


@contextmanager
def uninitialized() -> Iterator[None]:
    """Layers made within keep zeros for weights, which takes no time."""
    global _wanted
    before, _wanted = _wanted, False
    try:
        yield
    finally:
        _wanted = before


def normal(weight: mge.Tensor, std: float) -> None:
    """Fill with normal numbers of mean 0, from MegEngine's generator."""
    if _wanted:
        M.init.normal_(weight, 0, std)
