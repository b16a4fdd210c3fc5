"""Loops that no library fuses: the sum of a block's batch norms, its ReLU, and their gradients.

They take 15 ms of a training step of RepVGGA0 (16 images of 64 px), where the operators of
matmul/elementwise.py take 126 ms for the same, and MegEngine's own 221 ms (AMD EPYC, AVX2, 2
cores).
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit, prange

from .compiled import ONE, OPTIONS, ZERO, floats, integers

_CHUNK = 16384  # floats of a map that a thread works on at a time: 64 KiB


@njit(**OPTIONS)
def chunks_of(rows, channels):
    """Return the rows in a chunk and the number of chunks."""
    size = max(8, _CHUNK // channels)
    return size, (rows + size - 1) // size


@njit(parallel=True, **OPTIONS)
def statistics(source, rows, channels, target):
    """Write the mean of each channel and the sum of squares about it: [2, channels].

    Each chunk takes two passes; chunks are joined as in Chan et al., Updating Formulae and a
    Pairwise Algorithm for Computing Sample Variances, 1979.
    """
    x = carray(floats(source), (rows, channels))
    mean, squares = carray(floats(target), (2, channels))
    size, chunks = chunks_of(rows, channels)
    parts = np.empty((chunks, 2, channels), np.float32)
    for k in prange(chunks):
        total, square = parts[k, 0], parts[k, 1]
        first, last = k * size, min(rows, (k + 1) * size)
        total[:] = 0
        square[:] = 0
        row = first
        while row + 4 <= last:
            for c in range(channels):
                total[c] += (x[row, c] + x[row + 1, c]) + (x[row + 2, c] + x[row + 3, c])
            row += 4
        while row < last:
            for c in range(channels):
                total[c] += x[row, c]
            row += 1
        share = ONE / np.float32(last - first)
        for c in range(channels):
            total[c] *= share
        row = first
        while row + 4 <= last:
            for c in range(channels):
                a = x[row, c] - total[c]
                b = x[row + 1, c] - total[c]
                d = x[row + 2, c] - total[c]
                e = x[row + 3, c] - total[c]
                square[c] += (a * a + b * b) + (d * d + e * e)
            row += 4
        while row < last:
            for c in range(channels):
                a = x[row, c] - total[c]
                square[c] += a * a
            row += 1
    for c in range(channels):
        mean[c] = parts[0, 0, c]
        squares[c] = parts[0, 1, c]
    count = min(rows, size)
    for k in range(1, chunks):
        more = min(rows, (k + 1) * size) - k * size
        share = np.float32(more) / np.float32(count + more)
        weight = np.float32(count) * share
        for c in range(channels):
            difference = parts[k, 0, c] - mean[c]
            mean[c] += difference * share
            squares[c] += parts[k, 1, c] + difference * difference * weight
        count += more


@njit(**OPTIONS)
def coefficients(
    stats, gamma, beta, old_mean, old_var, new_mean, new_var, rows, channels, eps, momentum, target
):
    """Write scale, shift and inverse standard deviation of a batch norm: [3, channels].

    The new running statistics are written beside the old ones, which others may still hold.
    """
    mean, squares = carray(floats(stats), (2, channels))
    scale, shift, inverse = carray(floats(target), (3, channels))
    gamma_, beta_ = carray(floats(gamma), (channels,)), carray(floats(beta), (channels,))
    old_mean_, old_var_ = (
        carray(floats(old_mean), (channels,)),
        carray(floats(old_var), (channels,)),
    )
    new_mean_, new_var_ = (
        carray(floats(new_mean), (channels,)),
        carray(floats(new_var), (channels,)),
    )
    new = ONE - momentum
    unbiased = new / np.float32(max(rows - 1, 1))
    for c in range(channels):
        deviation = ONE / np.sqrt(squares[c] / np.float32(rows) + eps)
        inverse[c] = deviation
        scale[c] = gamma_[c] * deviation
        shift[c] = beta_[c] - scale[c] * mean[c]
        new_mean_[c] = old_mean_[c] * momentum + mean[c] * new
        new_var_[c] = old_var_[c] * momentum + squares[c] * unbiased


@njit(parallel=True, **OPTIONS)
def combine(sources, count, coefficients_, added, more, rows, channels, relu, target):
    """Write the sum of `count` scaled and shifted maps and of `more` others, ReLU on it if `relu`.

    `sources` and `added` are arrays of addresses, `coefficients_` is [count, 3, channels].
    """
    inputs = carray(integers(sources), (count,))
    others = carray(integers(added), (more,))
    table = carray(floats(coefficients_), (count, 3, channels))
    y = carray(floats(target), (rows, channels))
    shift = np.zeros(channels, np.float32)
    for b in range(count):
        for c in range(channels):
            shift[c] += table[b, 1, c]
    size, chunks = chunks_of(rows, channels)
    x0 = carray(floats(inputs[0]), (rows, channels))
    x1 = carray(floats(inputs[min(1, count - 1)]), (rows, channels))
    x2 = carray(floats(inputs[min(2, count - 1)]), (rows, channels))
    a0, a1, a2 = table[0, 0], table[min(1, count - 1), 0], table[min(2, count - 1), 0]
    for k in prange(chunks):
        for row in range(k * size, min(rows, (k + 1) * size)):
            if count == 1:
                for c in range(channels):
                    y[row, c] = a0[c] * x0[row, c] + shift[c]
            elif count == 2:
                for c in range(channels):
                    y[row, c] = a0[c] * x0[row, c] + a1[c] * x1[row, c] + shift[c]
            else:
                for c in range(channels):
                    y[row, c] = (
                        a0[c] * x0[row, c] + a1[c] * x1[row, c] + a2[c] * x2[row, c] + shift[c]
                    )
            for b in range(3, count):
                x, a = carray(floats(inputs[b]), (rows, channels)), table[b, 0]
                for c in range(channels):
                    y[row, c] += a[c] * x[row, c]
            for b in range(more):
                x = carray(floats(others[b]), (rows, channels))
                for c in range(channels):
                    y[row, c] += x[row, c]
            if relu:
                for c in range(channels):
                    y[row, c] = max(y[row, c], ZERO)


@njit(parallel=True, **OPTIONS)
def gradient_sums(
    gradient, output, sources, count, stats, coefficients_, rows, channels, relu, target
):
    """Write the gradients of shift and scales of `combine`: [1 + count, channels]."""
    dy = carray(floats(gradient), (rows, channels))
    y = carray(floats(output), (rows, channels))
    inputs = carray(integers(sources), (count,))
    means = carray(floats(stats), (count, 2, channels))
    table = carray(floats(coefficients_), (count, 3, channels))
    out = carray(floats(target), (1 + count, channels))
    size, chunks = chunks_of(rows, channels)
    parts = np.zeros((chunks, 1 + count, channels), np.float32)
    for k in prange(chunks):
        g = np.empty((4, channels), np.float32)
        total = parts[k, 0]
        row = k * size
        last = min(rows, (k + 1) * size)
        while row < last:
            n = min(4, last - row)
            for j in range(n):
                if relu:
                    for c in range(channels):
                        g[j, c] = dy[row + j, c] if y[row + j, c] > 0 else ZERO
                else:
                    for c in range(channels):
                        g[j, c] = dy[row + j, c]
            for j in range(n, 4):
                g[j, :] = 0
            for c in range(channels):
                total[c] += (g[0, c] + g[1, c]) + (g[2, c] + g[3, c])
            for b in range(count):
                x, mean = carray(floats(inputs[b]), (rows, channels)), means[b, 0]
                product = parts[k, 1 + b]
                if n == 4:
                    for c in range(channels):
                        product[c] += (
                            g[0, c] * (x[row, c] - mean[c]) + g[1, c] * (x[row + 1, c] - mean[c])
                        ) + (
                            g[2, c] * (x[row + 2, c] - mean[c])
                            + g[3, c] * (x[row + 3, c] - mean[c])
                        )
                else:
                    for j in range(n):
                        for c in range(channels):
                            product[c] += g[j, c] * (x[row + j, c] - mean[c])
            row += 4
    out[:] = 0
    for k in range(chunks):
        for b in range(1 + count):
            for c in range(channels):
                out[b, c] += parts[k, b, c]
    for b in range(count):
        for c in range(channels):
            out[1 + b, c] *= table[b, 2, c]


@njit(parallel=True, **OPTIONS)
def gradient_inputs(
    gradient,
    output,
    sources,
    count,
    stats,
    coefficients_,
    sums,
    rows,
    channels,
    relu,
    targets,
):
    """Write the gradients of the scaled inputs of `combine`; `targets` is an array of addresses."""
    dy = carray(floats(gradient), (rows, channels))
    y = carray(floats(output), (rows, channels))
    inputs = carray(integers(sources), (count,))
    outputs = carray(integers(targets), (count,))
    means = carray(floats(stats), (count, 2, channels))
    table = carray(floats(coefficients_), (count, 3, channels))
    totals = carray(floats(sums), (1 + count, channels))
    slope = np.empty((count, channels), np.float32)
    shift = np.empty((count, channels), np.float32)
    share = ONE / np.float32(rows)
    for b in range(count):
        for c in range(channels):
            a = table[b, 0, c]
            slope[b, c] = -a * table[b, 2, c] * totals[1 + b, c] * share
            shift[b, c] = -a * totals[0, c] * share - slope[b, c] * means[b, 0, c]
    size, chunks = chunks_of(rows, channels)
    for k in prange(chunks):
        g = np.empty(channels, np.float32)
        for row in range(k * size, min(rows, (k + 1) * size)):
            if relu:
                for c in range(channels):
                    g[c] = dy[row, c] if y[row, c] > 0 else ZERO
            else:
                for c in range(channels):
                    g[c] = dy[row, c]
            for b in range(count):
                x = carray(floats(inputs[b]), (rows, channels))
                dx = carray(floats(outputs[b]), (rows, channels))
                a, p, q = table[b, 0], slope[b], shift[b]
                for c in range(channels):
                    dx[row, c] = a[c] * g[c] + p[c] * x[row, c] + q[c]
