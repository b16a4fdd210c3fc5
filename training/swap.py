"""Replacing the weights of a network for a while, to evaluate averages between training steps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import megengine as mge
import megengine.module as M


def tensors(model: M.Module) -> dict[str, mge.Tensor]:
    """Return every parameter and buffer by name."""
    return dict((*model.named_parameters(), *model.named_buffers()))


@contextmanager
def swapped(model: M.Module, values: dict[str, mge.Tensor]) -> Iterator[None]:
    """Give the named parameters and buffers these values, and afterwards their own again.

    Nothing is copied: evaluate and save within this context, but do not train.
    """
    own = {name: tensor for name, tensor in tensors(model).items() if name in values}
    kept = {name: tensor.detach() for name, tensor in own.items()}
    try:
        for name, tensor in own.items():
            tensor._reset(values[name])
        yield
    finally:
        for name, tensor in own.items():
            tensor._reset(kept[name])
