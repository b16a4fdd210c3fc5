"""Batch norms that a checkpoint has and the network here has not, and the reverse."""

from __future__ import annotations

from models import reparam

import numpy as np

from .keymap import Tensors

EPS = 1e-5  # the same in all batch norms here and in the other repositories


def fold(tensors: Tensors, conv: str, bn: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Remove the kernel called `conv` and the batch norm `bn` from `tensors`; return them fused.

    Returns a kernel [O, I/groups, kh, kw] and a bias [O] in float64. Returns None and removes
    nothing when a part is missing or does not fit; the comparison with the network's tensors
    names it.
    """
    names = [f"{bn}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    if not {conv, *names} <= tensors.keys():
        return None
    kernel = tensors[conv]
    if kernel.ndim != 4 or any(tensors[name].size != len(kernel) for name in names):
        return None
    weight, bias, mean, variance = (tensors.pop(name) for name in names)
    gain, shift = map(np.asarray, reparam.gain_and_shift(weight, bias, mean, variance, EPS))
    return tensors.pop(conv) * gain[:, None, None, None], shift


def adding(bias: np.ndarray, bn: str) -> Tensors:
    """Return the tensors of a batch norm called `bn` that adds `bias`, [C], and does nothing else.

    Its gain, 1 / sqrt(variance + EPS), is so near 1 that folding it leaves every float32 as it was.
    """
    return {
        f"{bn}.weight": np.ones_like(bias),
        f"{bn}.bias": bias,
        f"{bn}.running_mean": np.zeros_like(bias),
        f"{bn}.running_var": np.full_like(bias, 1 - EPS),
    }
