"""Where programs are used: training of whole networks in float32, in the usual ways.

So is the evaluation of fused networks without gradients, where it is asked for (`cpu.evaluation`).
The other path computes what is traced or exported, quantization-aware training, MegEngine's own
mixed precision, modules with hooks, kernels larger than 7x7, batch norms that are frozen or shared
between processes, `--low-memory`, single blocks, `features()`, and batch norms in evaluation mode.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import megengine as mge
import megengine.module as M
import numpy as np
from megengine import amp
from megengine.core._imperative_rt.core2 import get_grad_key

from .. import symbol
from . import libraries


@cache
def available() -> bool:
    """Return whether programs can be run here; say so once, on stderr, if not."""
    try:
        libraries.load()
        from . import adamw, momentum, network  # noqa: F401  (what they need is compiled now, or read)
    except Exception as reason:  # numba's of a damaged cache are of many kinds
        line = " ".join(str(reason).split())
        print(
            "training uses REPARAM_CPU=matmul, as the faster REPARAM_CPU=fast cannot be used: "
            f"{line}",
            file=sys.stderr,
        )
        return False
    return True


def has_bfloat16() -> bool:
    """Return whether programs can be run here, and convolutions computed in bfloat16."""
    return available() and libraries.has_bfloat16()


def traced(
    model: M.Module, function: Callable[[mge.Tensor], mge.Tensor], x: mge.Tensor
) -> symbol.Trace | None:
    """Return what `function` of a part of `model` computes for images [N, C, H, W].

    None is returned where programs are not used.
    """
    if str(x.device) != "cpu0:0":  # where tensors of shared memory are
        return None
    if x.dtype != np.float32 or x.format != "default" or amp.enabled:
        return None
    try:
        trace = symbol.trace(function, tuple(x.shape))
    except symbol.Untraceable:
        return None
    if not available():  # asked last, as it may compile for a minute
        return None
    if not model.training and get_grad_key((x, *trace.parameters)) is not None:
        return None  # there is no backward pass
    return trace


def update_by_momentum(
    owner: object, parameters: list[mge.Tensor], velocities: list[mge.Tensor], **settings: Any
) -> bool:
    """Update parameters unless some are not of shared memory; return whether it was done."""
    if not _are_shared(parameters):
        return False
    from . import momentum

    momentum.update(owner, parameters, velocities, **settings)
    return True


def update_by_adamw(
    owner: object,
    parameters: list[mge.Tensor],
    means: list[mge.Tensor],
    squares: list[mge.Tensor],
    **numbers: Any,
) -> bool:
    """Update parameters unless some are not of shared memory; return whether it was done."""
    if not _are_shared(parameters):
        return False
    from . import adamw

    adamw.update(owner, parameters, means, squares, **numbers)
    return True


def orthogonal(
    owner: object,
    matrices: list[mge.Tensor],
    steps: tuple[tuple[float, float, float], ...],
    bfloat16: bool,
) -> list[mge.Tensor] | None:
    """Return matrices made orthogonal by steps, or None if some are not of shared memory."""
    if not _are_shared(matrices):
        return None
    from . import newton_schulz

    return newton_schulz.orthogonal(owner, matrices, steps, bfloat16)


def _are_shared(tensors: list[mge.Tensor]) -> bool:
    """Return whether compiled code can be run here on all of these tensors, and there are some."""
    ours = all(  # MegEngine cannot share tensors without axes
        t.ndim and t.dtype == np.float32 and str(t.device) == "cpu0:0" for t in tensors
    )
    return bool(tensors) and ours and available()
