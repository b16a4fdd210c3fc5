"""A step of AdamW in one pass over all parameters.

Most parameters of a network are its batch norms', so small that most of the time would go into
calling MegEngine's eight operators for each.
"""

from __future__ import annotations

from collections.abc import Sequence

import megengine as mge
import numpy as np
from numba import carray, njit, prange

from . import tensor_updates
from .compiled import ONE, OPTIONS, floats


@njit(**OPTIONS)
def _update_chunk(addresses, tensor, offset, size, kept, move, b1, b2, correction, eps):
    p = carray(floats(addresses[0, tensor] + offset), (size,))
    m = carray(floats(addresses[1, tensor] + offset), (size,))
    v = carray(floats(addresses[2, tensor] + offset), (size,))
    g = carray(floats(addresses[3, tensor] + offset), (size,))
    new_p = carray(floats(addresses[4, tensor] + offset), (size,))
    new_m = carray(floats(addresses[5, tensor] + offset), (size,))
    new_v = carray(floats(addresses[6, tensor] + offset), (size,))
    for i in range(size):
        mean = b1 * m[i] + (ONE - b1) * g[i]
        square = b2 * v[i] + (ONE - b2) * (g[i] * g[i])
        new_m[i] = mean
        new_v[i] = square
        new_p[i] = kept * p[i] + move * (mean / (np.sqrt(square) * correction + eps))


@njit(
    "void(int64[:, ::1], int64[:, ::1], float32, float32, float32, float32, float32, float32)",
    parallel=True,
    **OPTIONS,
)
def _update(addresses, chunks, kept, move, b1, b2, correction, eps):
    """Update tensors; tensor_updates.update tells what `addresses` and `chunks` are."""
    for k in prange(len(chunks)):
        tensor, offset, size = chunks[k, 0], 4 * chunks[k, 1], chunks[k, 2]
        _update_chunk(addresses, tensor, offset, size, kept, move, b1, b2, correction, eps)


def update(
    owner: object,
    parameters: Sequence[mge.Tensor],
    means: Sequence[mge.Tensor],
    squares: Sequence[mge.Tensor],
    kept: float,
    move: float,
    betas: tuple[float, float],
    correction: float,
    eps: float,
) -> None:
    """Update float32 parameters p by their gradients g, and means m and mean squares v of these.

    m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, then
    p <- kept p + move m / (correction sqrt(v) + eps), where (b1, b2) is `betas`.
    """
    numbers = [np.float32(number) for number in (kept, move, *betas, correction, eps)]
    gradients = [parameter.grad for parameter in parameters]
    tensor_updates.update(
        owner,
        [parameters, means, squares],
        [gradients],
        lambda addresses, chunks: _update(addresses, chunks, *numbers),
    )
