"""Batch norms that a checkpoint has where a network here has none, and the other way around."""

from __future__ import annotations

from models import reparam

import numpy as np

from .keymap import Tensors

EPS = 1e-5  # of every batch norm here and in the other repositories


def fold(tensors: Tensors, conv: str, bn: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Take the kernel called `conv` and the batch norm `bn` out of `tensors` as one convolution.

    Gives a kernel [O, I/groups, kh, kw] and a bias [O] in float64; None, taking nothing, when a
    part is missing or does not fit: it is named where the tensors are compared with the network's.
    """
    names = [f"{bn}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    if not {conv, *names} <= tensors.keys():
        return None
    kernel = tensors[conv]
    if kernel.ndim != 4 or any(tensors[name].size != len(kernel) for name in names):
        return None
    gain, shift = reparam.gain_and_shift(*(tensors.pop(name) for name in names), EPS)
    return tensors.pop(conv) * gain[:, None, None, None], shift


def that_adds(bias: np.ndarray, bn: str) -> Tensors:
    """A batch norm `bn` that adds `bias`, [C], and does nothing else.

    Its gain, 1 / sqrt(variance + EPS), is so near 1 that folding it leaves every float32 as it was.
    """
    return {
        f"{bn}.weight": np.ones_like(bias),
        f"{bn}.bias": bias,
        f"{bn}.running_mean": np.zeros_like(bias),
        f"{bn}.running_var": np.full_like(bias, 1 - EPS),
    }
