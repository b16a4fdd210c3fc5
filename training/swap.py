"""Lending a network other weights: to evaluate averages without disturbing the training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import megengine as mge
import megengine.module as M


def tensors(model: M.Module) -> dict[str, mge.Tensor]:
    """Every parameter and buffer by name."""
    return dict((*model.named_parameters(), *model.named_buffers()))


@contextmanager
def swapped(model: M.Module, values: dict[str, mge.Tensor]) -> Iterator[None]:
    """Within, the named parameters and buffers have these values; afterwards their own again.

    Nothing is copied: within, only evaluate and save, do not train.
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
