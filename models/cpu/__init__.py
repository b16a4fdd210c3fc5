"""Operators for training on a CPU; layers.py uses them wherever `is_used` says so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache

import megengine as mge
from megengine.core._imperative_rt.core2 import is_tracing_module
from megengine.jit.tracing import is_tracing

from .convolution import SMALL_MAP, conv2d
from .elementwise import add_bias, batch_norm, relu
from .large_kernel import SMALL_KERNEL

__all__ = [
    "SMALL_KERNEL",
    "SMALL_MAP",
    "add_bias",
    "batch_norm",
    "conv2d",
    "disabled",
    "is_used",
    "relu",
]

_enabled = ContextVar("enabled", default=True)


def is_used() -> bool:
    """Return whether MegEngine computes on a CPU, eagerly, and not within `disabled`.

    A traced network keeps MegEngine's own operators, because it is going to be exported.
    """
    if not _enabled.get() or is_tracing() or is_tracing_module():
        return False
    return _on_cpu(mge.get_default_device())


@cache
def _on_cpu(device: str) -> bool:
    return device.startswith(("cpu", "multithread")) or not mge.is_cuda_available()


@contextmanager
def disabled() -> Iterator[None]:
    """Use MegEngine's own operators in this thread, for comparison: `with cpu.disabled():`."""
    token = _enabled.set(False)
    try:
        yield
    finally:
        _enabled.reset(token)
