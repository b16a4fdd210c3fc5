"""The outputs of a network in float64, which MegEngine does not compute in.

It takes seconds where MegEngine takes milliseconds, and is for a network that is so sensitive that
float32's rounding errors hide whether two forms of it compute the same function.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import models
from models import reparam
from models.equivalence import Equivalence, agreement

import megengine.functional as F
import megengine.module as M
import numpy as np

from .tracing import Unsupported, Weight, replay


def confirmed(check: Equivalence, model: M.Module, images: np.ndarray) -> Equivalence:
    """Return a check that holds as it is, and another one made again in float64.

    There the fused weights are compared before they are rounded to float32, and rounded they must
    be those of the deploy form. A check with outputs that are not finite stays as it is too.

    Args:
        check: result of `equivalence.compare` on `model`.
        model: a network in train form.
        images: float32 [N, C, H, W].
    """
    if check.holds or not np.isfinite(check.relative_error):
        return check
    deployed = models.to_deploy(model)
    weights = reparam.unrounded_weights(model)
    rounded = dict(deployed.named_parameters())
    if any(not np.array_equal(rounded[k].numpy(), np.float32(v)) for k, v in weights.items()):
        return check
    before = outputs(model, images)
    after = outputs(deployed, images, weights)
    error = np.abs(before - after).max()
    return check._replace(
        max_abs_error=float(error),
        relative_error=float(error / np.abs(before).max() if error else error),
        argmax_agreement=agreement(before, after),
        precision="float64",
    )


def outputs(
    model: M.Module, images: np.ndarray, weights: Mapping[str, np.ndarray] | None = None
) -> np.ndarray:
    """Return what `model` computes in evaluation mode from images [N, C, H, W], in float64.

    `weights` replace those of the model, by name. Raises ExportError for an operator that no
    network here has.
    """
    training, weights = model.training, weights or {}
    model.eval()

    def number(value: Any) -> Any:
        if not isinstance(value, Weight):
            return value
        return weights.get(value.name, value.value).astype(np.float64)

    def visit(_path: str, operator: Any, arguments: Any, named: dict[str, Any]) -> np.ndarray:
        if operator not in _OPERATORS:
            raise Unsupported(f"uses {operator}, which is not computed in float64")
        return _OPERATORS[operator](
            *map(number, arguments), **{name: number(value) for name, value in named.items()}
        )

    height, width = images.shape[2:]
    try:
        (result,) = replay(model, (height, width), images.astype(np.float64), visit)
        return result
    finally:
        model.train(training)


def _conv2d(
    inp: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    **_: Any,
) -> np.ndarray:
    """Return the convolution as a sum over the places of the kernel: a matrix product at each."""
    (sy, sx), (py, px), (dy, dx) = map(_pair, (stride, padding, dilation))
    kernel = weight.reshape(groups, -1, *weight.shape[-3:])  # [G, O/G, I/G, kh, kw]
    padded = np.pad(inp, ((0, 0), (0, 0), (py, py), (px, px)))
    n, channels, height, width = padded.shape
    kh, kw = kernel.shape[-2:]
    rows, columns = ((height - dy * (kh - 1) - 1) // sy + 1, (width - dx * (kw - 1) - 1) // sx + 1)
    depthwise = kernel.shape[1:3] == (1, 1)
    total: Any = 0
    for y in range(kh):
        for x in range(kw):
            part = padded[:, :, y * dy :: sy, x * dx :: sx][:, :, :rows, :columns]
            if depthwise:
                total = total + part * kernel[:, 0, 0, y, x].reshape(1, channels, 1, 1)
            else:
                flat = part.reshape(n, groups, channels // groups, rows * columns)
                total = total + kernel[..., y, x] @ flat
    total = total.reshape(n, -1, rows, columns)
    return total if bias is None else total + bias.reshape(1, -1, 1, 1)


def _batch_norm(
    inp: np.ndarray,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    eps: float,
    **_: Any,
) -> np.ndarray:
    shape = (1, -1) + (1,) * (inp.ndim - 2)
    y = (inp - running_mean.reshape(shape)) / np.sqrt(running_var.reshape(shape) + eps)
    if weight is not None:
        y = y * weight.reshape(shape)
    return y if bias is None else y + bias.reshape(shape)


def _linear(inp: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, **_: Any) -> np.ndarray:
    product = inp @ weight.T
    return product if bias is None else product + bias


def _gelu(x: np.ndarray) -> np.ndarray:
    from scipy.special import erf

    return x * (1 + erf(x / math.sqrt(2))) / 2


def _mean(inp: np.ndarray, axis: Any, keepdims: bool) -> np.ndarray:
    axes = tuple(axis) if isinstance(axis, tuple | list) else axis
    return inp.mean(axis=axes, keepdims=keepdims)


def _flatten(inp: np.ndarray, start_axis: int, end_axis: int) -> np.ndarray:
    return inp.reshape(*inp.shape[:start_axis], -1)


def _pair(value: Any) -> tuple[int, int]:
    return (value[0], value[1]) if isinstance(value, tuple | list) else (value, value)


_OPERATORS: dict[Any, Callable[..., np.ndarray]] = {
    F.conv2d: _conv2d,
    F.nn.linear: _linear,
    F.nn.batch_norm: _batch_norm,
    F.relu: lambda x: np.maximum(x, 0),
    F.gelu: _gelu,
    F.sigmoid: lambda x: (1 + np.tanh(x / 2)) / 2,  # exp would overflow
    F.hsigmoid: lambda x: np.clip(x / 6 + 0.5, 0, 1),
    F.mean: _mean,
    F.flatten: _flatten,
    "__add__": lambda x, y: x + y,
    "__sub__": lambda x, y: x - y,
    "__mul__": lambda x, y: x * y,
    "__truediv__": lambda x, y: x / y,
    M.Dropout: lambda x: x,
}
