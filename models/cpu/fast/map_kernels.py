"""Loops over maps: sums, pooling and gates, with their gradients.

With the batch norms of norm_kernels.py they take 28 ms of a training step of RepGhost100 (16 images
of 64 px), where "matmul" takes 222 ms for the same, and MegEngine's own operators 351 ms (AMD EPYC,
AVX2, 2 cores).
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit, prange

from .compiled import ONE, OPTIONS, floats, integers, outputs

_STEP = 8192  # floats of a chunk where channels do not matter


@njit(**OPTIONS)
def _add_two(a, b, target, size):
    x0, x1 = carray(floats(a), (size,)), carray(floats(b), (size,))
    y = carray(floats(target), (size,))
    for i in range(size):
        y[i] = x0[i] + x1[i]


@njit(**OPTIONS)
def _add_three(a, b, c, target, size):
    x0, x1, x2 = carray(floats(a), (size,)), carray(floats(b), (size,)), carray(floats(c), (size,))
    y = carray(floats(target), (size,))
    for i in range(size):
        y[i] = x0[i] + x1[i] + x2[i]


@njit(parallel=True, **OPTIONS)
def add(sources, count, size, target):
    """Write the sum of two or more arrays of `size` floats; `sources` is an array of addresses.

    Each sum is a function of its own, as loops in here would not be vectorized.
    """
    inputs = carray(integers(sources), (count,))
    for k in prange((size + _STEP - 1) // _STEP):
        first = np.int64(k) * _STEP
        count_here, offset = min(_STEP, size - first), 4 * first
        y = target + offset
        if count == 2:
            _add_two(inputs[0] + offset, inputs[1] + offset, y, count_here)
        else:
            _add_three(inputs[0] + offset, inputs[1] + offset, inputs[2] + offset, y, count_here)
        for b in range(3, count):
            _add_two(y, inputs[b] + offset, y, count_here)


@njit(**OPTIONS)
def copy(source, size, target):
    """Copy `size` floats."""
    carray(floats(target), (size,))[:] = carray(floats(source), (size,))


@njit(parallel=True, **OPTIONS)
def pool(source, images, positions, channels, target):
    """Write the mean over the positions: [images, channels]."""
    x = carray(floats(source), (images, positions, channels))
    y = carray(floats(target), (images, channels))
    share = ONE / np.float32(positions)
    for n in prange(images):
        mean = y[n]
        mean[:] = 0
        for p in range(positions):
            for c in range(channels):
                mean[c] += x[n, p, c]
        for c in range(channels):
            mean[c] *= share


@njit(parallel=True, **OPTIONS)
def pool_gradient(gradient, images, positions, channels, target):
    """Write the gradient of the input of `pool`."""
    dy = carray(floats(gradient), (images, channels))
    dx = carray(floats(target), (images, positions, channels))
    share = ONE / np.float32(positions)
    for n in prange(images):
        for p in range(positions):
            for c in range(channels):
                dx[n, p, c] = dy[n, c] * share


@njit(parallel=True, **OPTIONS)
def scale(source, gate, images, positions, channels, target):
    """Multiply each map by its gate, [images, channels]."""
    x = carray(floats(source), (images, positions, channels))
    g = carray(floats(gate), (images, channels))
    y = carray(floats(target), (images, positions, channels))
    for n in prange(images):
        for p in range(positions):
            for c in range(channels):
                y[n, p, c] = x[n, p, c] * g[n, c]


@njit(parallel=True, **OPTIONS)
def scale_gradient(gradient, source, gate, images, positions, channels, target, gate_target):
    """Write the gradients of both inputs of `scale`."""
    dy = carray(floats(gradient), (images, positions, channels))
    x = carray(floats(source), (images, positions, channels))
    g = carray(floats(gate), (images, channels))
    dx = carray(floats(target), (images, positions, channels))
    dg = carray(floats(gate_target), (images, channels))
    for n in prange(images):
        total = dg[n]
        total[:] = 0
        for p in range(positions):
            for c in range(channels):
                dx[n, p, c] = dy[n, p, c] * g[n, c]
                total[c] += dy[n, p, c] * x[n, p, c]


@njit(**OPTIONS)
def broadcast(source, rows, size, target):
    """Write `rows` copies of `size` floats."""
    x, y = carray(floats(source), (size,)), carray(floats(target), (rows, size))
    for r in range(rows):
        for i in range(size):
            y[r, i] = x[i]


_ROWS = 4096  # of a chunk


@njit(parallel=True, **OPTIONS)
def sum_rows(source, rows, size, target):
    """Write the sum of `rows` rows of `size` floats, the gradient of the input of `broadcast`."""
    x, y = carray(floats(source), (rows, size)), carray(floats(target), (size,))
    chunks = (rows + _ROWS - 1) // _ROWS
    sums = np.zeros((chunks, size), np.float32)
    for k in prange(chunks):
        total = sums[k]
        for r in range(np.int64(k) * _ROWS, min(rows, (np.int64(k) + 1) * _ROWS)):
            for i in range(size):
                total[i] += x[r, i]
    y[:] = 0
    for k in range(chunks):
        for i in range(size):
            y[i] += sums[k, i]


@njit(parallel=True, **OPTIONS)
def patches(source, n, h, w, c, k, stride, padding, target):
    """Write what a kernel of size k sees at each of its positions: [n * oh * ow, k * k * c]."""
    oh, ow = outputs(h, k, stride, padding), outputs(w, k, stride, padding)
    x = carray(floats(source), (n, h, w, c))
    seen = carray(floats(target), (n, oh, ow, k, k, c))
    for row in prange(n * oh):
        image, j = np.int64(row) // oh, np.int64(row) % oh
        for i in range(ow):
            for ky in range(k):
                y = j * stride + ky - padding
                for kx in range(k):
                    z = i * stride + kx - padding
                    part = seen[image, j, i, ky, kx]
                    if 0 <= y < h and 0 <= z < w:
                        for ch in range(c):
                            part[ch] = x[image, y, z, ch]
                    else:
                        part[:] = 0
