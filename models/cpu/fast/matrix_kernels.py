"""Loops over square and other small matrices, for newton_schulz.py and merged_kernels.py."""

from __future__ import annotations

import numpy as np
from numba import carray, njit, prange

from .compiled import ONE, OPTIONS, ZERO, floats

LANES = 16
_TINY = np.float32(1e-12)


@njit(**OPTIONS)
def dot(a, b, size, lanes):
    """Return the sum of products of two rows; `lanes` [16] is memory that is written over."""
    lanes[:] = 0
    i = 0
    while i + LANES <= size:
        for j in range(LANES):
            lanes[j] += a[i + j] * b[i + j]
        i += LANES
    total = ZERO
    for j in range(LANES):
        total += lanes[j]
    while i < size:
        total += a[i] * b[i]
        i += 1
    return total


@njit(parallel=True, **OPTIONS)
def normalize(matrices, count, size):
    """Divide each of `count` arrays of `size` floats by its norm, in place; zeros stay zeros."""
    x = carray(floats(matrices), (count, size))
    for k in prange(count):
        row = x[k]
        factor = ONE / (np.sqrt(dot(row, row, size, np.empty(LANES, np.float32))) + _TINY)
        for i in range(size):
            row[i] *= factor


@njit(parallel=True, **OPTIONS)
def scale_and_shift(source, count, size, scale, shift, target):
    """Write scale m + shift I for each of `count` matrices [size, size]."""
    x = carray(floats(source), (count * size, size))
    y = carray(floats(target), (count * size, size))
    for row in prange(count * size):
        for i in range(size):
            y[row, i] = scale * x[row, i]
        y[row, np.int64(row) % size] += shift
