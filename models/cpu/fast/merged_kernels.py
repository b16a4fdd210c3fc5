"""Loops for the batch norms of several convolutions of one map, which merged_sum.py merges.

A branch's weight is a matrix [outputs, inputs]. Covariances are sums over the positions, not means.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit, prange

from .compiled import ONE, OPTIONS, ZERO, floats
from .matrix_kernels import LANES, dot
from .norm_kernels import chunks_of


@njit(parallel=True, **OPTIONS)
def center(source, stats, rows, channels, target):
    """Write the difference to the mean of each channel, the first row of `stats`."""
    x, y = carray(floats(source), (rows, channels)), carray(floats(target), (rows, channels))
    mean = carray(floats(stats), (channels,))
    size, chunks = chunks_of(rows, channels)
    for k in prange(chunks):
        for row in range(k * size, min(rows, (k + 1) * size)):
            for c in range(channels):
                y[row, c] = x[row, c] - mean[c]


@njit(parallel=True, **OPTIONS)
def branch_statistics(weights, products, means, branches, outputs, inputs, target):
    """Write what norm_kernels.statistics says of each branch: [branches, 2, outputs].

    `weights` and `products`, which are weights times the covariance of the inputs, are [branches,
    outputs, inputs], and the means of the inputs are [inputs].
    """
    w = carray(floats(weights), (branches, outputs, inputs))
    p = carray(floats(products), (branches, outputs, inputs))
    mean = carray(floats(means), (inputs,))
    stats = carray(floats(target), (branches, 2, outputs))
    for o in prange(outputs):
        lanes = np.empty(LANES, np.float32)
        for b in range(branches):
            stats[b, 0, o] = dot(w[b, o], mean, inputs, lanes)
            stats[b, 1, o] = max(dot(w[b, o], p[b, o], inputs, lanes), ZERO)


@njit(parallel=True, **OPTIONS)
def merge(weights, coefficients, branches, outputs, inputs, target, table):
    """Write the weight of the sum of the normed branches, and what is added, for `combine`.

    `coefficients` is [branches, 3, outputs], as norm_kernels.coefficients writes it, and so is
    `table`, of one branch.
    """
    w = carray(floats(weights), (branches, outputs, inputs))
    scales = carray(floats(coefficients), (branches, 3, outputs))
    merged, added = carray(floats(target), (outputs, inputs)), carray(floats(table), (3, outputs))
    for o in prange(outputs):
        row, shift = merged[o], ZERO
        row[:] = 0
        for b in range(branches):
            scale = scales[b, 0, o]
            shift += scales[b, 1, o]
            for i in range(inputs):
                row[i] += scale * w[b, o, i]
        added[0, o], added[1, o], added[2, o] = ONE, shift, ONE


@njit(parallel=True, **OPTIONS)
def centered_gradient(gradient, output, rows, channels, relu, sums, target):
    """Write a gradient less the mean of each channel, and its sums over the rows.

    If `relu`, it is first made 0 where the ReLU's `output` is.
    """
    dy, y = carray(floats(gradient), (rows, channels)), carray(floats(output), (rows, channels))
    total, g = carray(floats(sums), (channels,)), carray(floats(target), (rows, channels))
    size, chunks = chunks_of(rows, channels)
    parts = np.zeros((chunks, channels), np.float32)
    for k in prange(chunks):
        part = parts[k]
        for row in range(k * size, min(rows, (k + 1) * size)):
            if relu:
                for c in range(channels):
                    g[row, c] = dy[row, c] if y[row, c] > 0 else ZERO
            else:
                for c in range(channels):
                    g[row, c] = dy[row, c]
            for c in range(channels):
                part[c] += g[row, c]
    total[:] = 0
    for k in range(chunks):
        for c in range(channels):
            total[c] += parts[k, c]
    mean = total / np.float32(rows)
    for k in prange(chunks):
        for row in range(k * size, min(rows, (k + 1) * size)):
            for c in range(channels):
                g[row, c] -= mean[c]


@njit(parallel=True, **OPTIONS)
def branch_gradients(
    gradient, weights, products, coefficients, rows, branches, outputs, inputs,
    scales, targets, scaled,
):  # fmt: skip
    """Write the gradients of the branches from that of the merged weight [outputs, inputs].

    Those of the scales of the norms are [branches, outputs], those of the weights [branches,
    outputs, inputs]. `scaled`, of the same shape, is each row of the weights times twice the
    gradient of its sum of squares, so that weights^T `scaled` is twice that of the covariance.
    """
    dm = carray(floats(gradient), (outputs, inputs))
    w = carray(floats(weights), (branches, outputs, inputs))
    p = carray(floats(products), (branches, outputs, inputs))
    table = carray(floats(coefficients), (branches, 3, outputs))
    dscale = carray(floats(scales), (branches, outputs))
    dw = carray(floats(targets), (branches, outputs, inputs))
    twice = carray(floats(scaled), (branches, outputs, inputs))
    share = ONE / np.float32(rows)
    for o in prange(outputs):
        lanes = np.empty(LANES, np.float32)
        for b in range(branches):
            scale, inverse = table[b, 0, o], table[b, 2, o]
            of_scale = dot(dm[o], w[b, o], inputs, lanes)
            dscale[b, o] = of_scale * inverse
            # twice the gradient of the sum of squares, which the inverse deviation is made of
            twice_of_squares = -of_scale * scale * inverse * inverse * share
            for i in range(inputs):
                dw[b, o, i] = scale * dm[o, i] + twice_of_squares * p[b, o, i]
                twice[b, o, i] = twice_of_squares * w[b, o, i]


@njit(**OPTIONS)
def negative_product(matrix, vector, size, target):
    """Write -matrix vector, of a matrix [size, size]."""
    m, v = carray(floats(matrix), (size, size)), carray(floats(vector), (size,))
    y, lanes = carray(floats(target), (size,)), np.empty(LANES, np.float32)
    for i in range(size):
        y[i] = -dot(m[i], v, size, lanes)
