"""Gradient clipping: changes `parameter.grad` between the backward pass and the optimizer's step.

Nothing here waits for the device. Gradients that are not finite make weights that are not, which
the training loop notices.
"""

from __future__ import annotations

from collections.abc import Iterable

import megengine as mge
import megengine.functional as F

from .parameter_kinds import VECTORS


def clip_by_norm(parameters: Iterable[mge.Tensor], limit: float) -> None:
    """Scale all gradients together so that their common L2 norm is at most `limit`.

    Source: Pascanu et al., ICML 2013.
    """
    parameters = [p for p in parameters if p.grad is not None]
    norm = F.sqrt(sum(_sum_of_squares(p.grad) for p in parameters))
    scale = F.minimum(limit / F.maximum(norm, 1e-12), 1.0)
    for parameter in parameters:
        parameter.grad = parameter.grad * scale


def clip_adaptively(
    parameters: Iterable[tuple[mge.Tensor, str]], factor: float, eps: float = 1e-3
) -> None:
    """Scale each unit's gradient to a norm of at most `factor` times the norm of its weights.

    A unit is the weights of one output channel or, for biases and batch norms, the whole vector;
    weights of a norm below `eps` count as of `eps`. Source: Brock et al., High-Performance
    Large-Scale Image Recognition Without Normalization, ICML 2021, which leaves the classifier out.

    Args:
        parameters: (parameter, its kind, one of parameter_kinds.KINDS) pairs.
        factor: 0.01 in the paper.
        eps: 1e-3 in the paper.
    """
    for parameter, kind in parameters:
        if (grad := parameter.grad) is not None:
            norm = F.maximum(_unit_norms(grad, kind), 1e-6)
            limit = factor * F.maximum(_unit_norms(parameter.detach(), kind), eps)
            parameter.grad = grad * F.minimum(limit / norm, 1.0)


def _unit_norms(x: mge.Tensor, kind: str) -> mge.Tensor:
    """Return the L2 norms of the units of x, in a shape that broadcasts against it."""
    if kind in VECTORS:
        return F.sqrt(_sum_of_squares(x))
    inner = 1 if x.ndim == 2 else 3  # [O, I], [O, I, k, k] or [G, O/G, I/G, k, k]
    rows = x.reshape(*x.shape[:-inner], -1)  # [..., O, inputs]
    norms = F.sqrt(F.sum(rows * rows, axis=-1))
    return norms.reshape(*x.shape[:-inner], *(1,) * inner)


def _sum_of_squares(x: mge.Tensor) -> mge.Tensor:
    flat = x.reshape(-1)
    return F.sum(flat * flat)
