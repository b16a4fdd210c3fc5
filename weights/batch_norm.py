"""Batch norms that a checkpoint has and the network here has not, and the reverse."""

from __future__ import annotations

from models import reparam

import numpy as np

from .keymap import Tensors

EPS = 1e-5  # the same in all batch norms here and in the other repositories


def fold(
    tensors: Tensors, conv: str, bn: str, before: str | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """Remove the kernel called `conv` and its batch norms from `tensors`; return them fused.

    The batch norm `bn` follows the convolution; one called `before`, if any, precedes it, and the
    kernel is 1x1 then. Returns a kernel [O, I/groups, kh, kw] and a bias [O] in float64. Returns
    None and removes nothing when a part is missing or does not fit; the comparison with the
    network's tensors names it.
    """
    kernel = tensors.get(conv)
    if kernel is None or kernel.ndim < 4:
        return None
    kernel = kernel.reshape(-1, *kernel.shape[-3:])  # MegEngine's groups: [G, O/G, ...] -> [O, ...]
    if not _has_norm(tensors, bn, len(kernel)):
        return None
    if before is not None and not _has_norm(tensors, before, int(np.prod(kernel.shape[1:]))):
        return None
    gain, shift = _pop_norm(tensors, bn)
    del tensors[conv]
    kernel = kernel * gain[:, None, None, None]
    if before is None:
        return kernel, shift
    matrix, bias = _after(_pop_norm(tensors, before), kernel.reshape(len(kernel), -1), shift)
    return matrix.reshape(kernel.shape), bias


def fold_before(tensors: Tensors, bn: str, linear: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Remove the batch norm `bn` and the linear layer after it from `tensors`; return them fused.

    Returns a matrix [O, I] and a bias [O] in float64, or None as `fold` does.
    """
    names = f"{linear}.weight", f"{linear}.bias"
    if not set(names) <= tensors.keys():
        return None
    matrix, bias = (tensors[name] for name in names)
    if matrix.ndim != 2 or bias.size != len(matrix) or not _has_norm(tensors, bn, matrix.shape[1]):
        return None
    for name in names:
        del tensors[name]
    return _after(_pop_norm(tensors, bn), matrix, bias.reshape(-1))


def _after(
    norm: tuple[np.ndarray, np.ndarray], matrix: np.ndarray, bias: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    gain, shift = norm
    return matrix * gain, bias + matrix @ shift


def _parts(bn: str) -> list[str]:
    return [f"{bn}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]


def _has_norm(tensors: Tensors, bn: str, channels: int) -> bool:
    return all(n in tensors and tensors[n].size == channels for n in _parts(bn))


def _pop_norm(tensors: Tensors, bn: str) -> tuple[np.ndarray, np.ndarray]:
    weight, bias, mean, variance = (tensors.pop(name) for name in _parts(bn))
    gain, shift = map(np.asarray, reparam.gain_and_shift(weight, bias, mean, variance, EPS))
    return gain, shift


def adding(bias: np.ndarray, bn: str, counted: bool = False) -> Tensors:
    """Return the tensors of a batch norm called `bn` that adds `bias`, [C], and does nothing else.

    Its gain, 1 / sqrt(variance + EPS), is so near 1 that folding it leaves every float32 as it was.
    Where they are `counted`, there is PyTorch's number of the batches it has seen too.
    """
    tensors = {
        f"{bn}.weight": np.ones_like(bias),
        f"{bn}.bias": bias,
        f"{bn}.running_mean": np.zeros_like(bias),
        f"{bn}.running_var": np.full_like(bias, 1 - EPS),
    }
    if counted:
        tensors[f"{bn}.num_batches_tracked"] = np.zeros((), np.int64)
    return tensors
