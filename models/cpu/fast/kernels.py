"""Loops that no library fuses, compiled by numba: batch norms with their sum, activations, pooling.

Maps are float32 matrices [rows, channels], whose rows are all positions of all images; they are
given by address. The work is divided into chunks whatever the number of threads, so that sums have
the same bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit, prange, types
from numba.extending import intrinsic


@intrinsic
def _floats(typingctx, address):
    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(address), codegen


@intrinsic
def _integers(typingctx, address):
    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(address), codegen


# No reassociation: sums have one order. Products and sums may be contracted, zeros lose their sign.
_OPTIONS: Any = {
    "cache": True,
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "arcp"},
}
_CHUNK = 16384  # floats of a map that a thread works on at a time: 64 KiB
_ONE = np.float32(1)
_ZERO = np.float32(0)


@njit(**_OPTIONS)
def _chunks(rows, channels):
    """Return the rows in a chunk and the number of chunks."""
    size = max(8, _CHUNK // channels)
    return size, (rows + size - 1) // size


@njit(parallel=True, **_OPTIONS)
def to_rows(source, target, images, channels, positions):
    """Transpose [images, channels, positions] to [images, positions, channels]."""
    x = carray(_floats(source), (images, channels, positions))
    y = carray(_floats(target), (images, positions, channels))
    block = 16
    blocks = (positions + block - 1) // block
    for k in prange(images * blocks):
        n = np.int64(k) // blocks
        first = (np.int64(k) - n * blocks) * block
        last = min(positions, first + block)
        for c in range(channels):
            for p in range(first, last):
                y[n, p, c] = x[n, c, p]


@njit(parallel=True, **_OPTIONS)
def from_rows(source, target, images, channels, positions):
    """Transpose [images, positions, channels] to [images, channels, positions]."""
    x = carray(_floats(source), (images, positions, channels))
    y = carray(_floats(target), (images, channels, positions))
    block = 16
    blocks = (channels + block - 1) // block
    for k in prange(images * blocks):
        n = np.int64(k) // blocks
        first = (np.int64(k) - n * blocks) * block
        last = min(channels, first + block)
        for p in range(positions):
            for c in range(first, last):
                y[n, c, p] = x[n, p, c]


@njit(parallel=True, **_OPTIONS)
def statistics(source, rows, channels, target):
    """Write the mean of each channel and the sum of squares about it: [2, channels].

    Each chunk takes two passes; chunks are joined as in Chan et al., Updating Formulae and a
    Pairwise Algorithm for Computing Sample Variances, 1979.
    """
    x = carray(_floats(source), (rows, channels))
    mean, squares = carray(_floats(target), (2, channels))
    size, chunks = _chunks(rows, channels)
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
        share = _ONE / np.float32(last - first)
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


@njit(**_OPTIONS)
def coefficients(
    stats, gamma, beta, old_mean, old_var, new_mean, new_var, rows, channels, eps, momentum, target
):
    """Write scale, shift and inverse standard deviation of a batch norm: [3, channels].

    The new running statistics are written beside the old ones, which others may still hold.
    """
    mean, squares = carray(_floats(stats), (2, channels))
    scale, shift, inverse = carray(_floats(target), (3, channels))
    gamma_, beta_ = carray(_floats(gamma), (channels,)), carray(_floats(beta), (channels,))
    old_mean_, old_var_ = (
        carray(_floats(old_mean), (channels,)),
        carray(_floats(old_var), (channels,)),
    )
    new_mean_, new_var_ = (
        carray(_floats(new_mean), (channels,)),
        carray(_floats(new_var), (channels,)),
    )
    new = _ONE - momentum
    unbiased = new / np.float32(max(rows - 1, 1))
    for c in range(channels):
        deviation = _ONE / np.sqrt(squares[c] / np.float32(rows) + eps)
        inverse[c] = deviation
        scale[c] = gamma_[c] * deviation
        shift[c] = beta_[c] - scale[c] * mean[c]
        new_mean_[c] = old_mean_[c] * momentum + mean[c] * new
        new_var_[c] = old_var_[c] * momentum + squares[c] * unbiased


@njit(parallel=True, **_OPTIONS)
def combine(sources, count, coefficients_, added, more, rows, channels, relu, target):
    """Write the sum of `count` scaled and shifted maps and of `more` others, ReLU on it if `relu`.

    `sources` and `added` are arrays of addresses, `coefficients_` is [count, 3, channels].
    """
    inputs = carray(_integers(sources), (count,))
    others = carray(_integers(added), (more,))
    table = carray(_floats(coefficients_), (count, 3, channels))
    y = carray(_floats(target), (rows, channels))
    shift = np.zeros(channels, np.float32)
    for b in range(count):
        for c in range(channels):
            shift[c] += table[b, 1, c]
    size, chunks = _chunks(rows, channels)
    x0 = carray(_floats(inputs[0]), (rows, channels))
    x1 = carray(_floats(inputs[min(1, count - 1)]), (rows, channels))
    x2 = carray(_floats(inputs[min(2, count - 1)]), (rows, channels))
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
                x, a = carray(_floats(inputs[b]), (rows, channels)), table[b, 0]
                for c in range(channels):
                    y[row, c] += a[c] * x[row, c]
            for b in range(more):
                x = carray(_floats(others[b]), (rows, channels))
                for c in range(channels):
                    y[row, c] += x[row, c]
            if relu:
                for c in range(channels):
                    y[row, c] = max(y[row, c], _ZERO)


@njit(parallel=True, **_OPTIONS)
def gradient_sums(
    gradient, output, sources, count, stats, coefficients_, rows, channels, relu, target
):
    """Write the gradients of shift and scales of `combine`: [1 + count, channels]."""
    dy = carray(_floats(gradient), (rows, channels))
    y = carray(_floats(output), (rows, channels))
    inputs = carray(_integers(sources), (count,))
    means = carray(_floats(stats), (count, 2, channels))
    table = carray(_floats(coefficients_), (count, 3, channels))
    out = carray(_floats(target), (1 + count, channels))
    size, chunks = _chunks(rows, channels)
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
                        g[j, c] = dy[row + j, c] if y[row + j, c] > 0 else _ZERO
                else:
                    for c in range(channels):
                        g[j, c] = dy[row + j, c]
            for j in range(n, 4):
                g[j, :] = 0
            for c in range(channels):
                total[c] += (g[0, c] + g[1, c]) + (g[2, c] + g[3, c])
            for b in range(count):
                x, mean = carray(_floats(inputs[b]), (rows, channels)), means[b, 0]
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


@njit(parallel=True, **_OPTIONS)
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
    dy = carray(_floats(gradient), (rows, channels))
    y = carray(_floats(output), (rows, channels))
    inputs = carray(_integers(sources), (count,))
    outputs = carray(_integers(targets), (count,))
    means = carray(_floats(stats), (count, 2, channels))
    table = carray(_floats(coefficients_), (count, 3, channels))
    totals = carray(_floats(sums), (1 + count, channels))
    slope = np.empty((count, channels), np.float32)
    shift = np.empty((count, channels), np.float32)
    share = _ONE / np.float32(rows)
    for b in range(count):
        for c in range(channels):
            a = table[b, 0, c]
            slope[b, c] = -a * table[b, 2, c] * totals[1 + b, c] * share
            shift[b, c] = -a * totals[0, c] * share - slope[b, c] * means[b, 0, c]
    size, chunks = _chunks(rows, channels)
    for k in prange(chunks):
        g = np.empty(channels, np.float32)
        for row in range(k * size, min(rows, (k + 1) * size)):
            if relu:
                for c in range(channels):
                    g[c] = dy[row, c] if y[row, c] > 0 else _ZERO
            else:
                for c in range(channels):
                    g[c] = dy[row, c]
            for b in range(count):
                x = carray(_floats(inputs[b]), (rows, channels))
                dx = carray(_floats(outputs[b]), (rows, channels))
                a, p, q = table[b, 0], slope[b], shift[b]
                for c in range(channels):
                    dx[row, c] = a[c] * g[c] + p[c] * x[row, c] + q[c]


_STEP = 8192  # floats of a chunk where channels do not matter


@njit(parallel=True, **_OPTIONS)
def add(sources, count, size, target):
    """Write the sum of two or more arrays of `size` floats; `sources` is an array of addresses."""
    inputs = carray(_integers(sources), (count,))
    y = carray(_floats(target), (size,))
    x0, x1 = carray(_floats(inputs[0]), (size,)), carray(_floats(inputs[1]), (size,))
    x2 = carray(_floats(inputs[count - 1]), (size,))
    for k in prange((size + _STEP - 1) // _STEP):
        first, last = np.int64(k) * _STEP, min(size, (np.int64(k) + 1) * _STEP)
        if count == 2:
            for i in range(first, last):
                y[i] = x0[i] + x1[i]
        else:
            for i in range(first, last):
                y[i] = x0[i] + x1[i] + x2[i]
        for b in range(2, count - 1):
            x = carray(_floats(inputs[b]), (size,))
            for i in range(first, last):
                y[i] += x[i]


@njit(**_OPTIONS)
def copy(source, size, target):
    """Copy `size` floats."""
    carray(_floats(target), (size,))[:] = carray(_floats(source), (size,))


RELU, SIGMOID, HARD_SIGMOID, GELU = range(4)  # kinds of activations


@njit(**_OPTIONS)
def _erf(x):
    """Return erf(x) by the rational approximation of Eigen: 4 ulp up to |x| = 4, beyond it +-1."""
    x = min(max(x, np.float32(-4)), np.float32(4))
    s = x * x
    numerator = np.float32(-2.72614225801306e-10)
    numerator = numerator * s + np.float32(2.77068142495902e-08)
    numerator = numerator * s + np.float32(-2.10102402082508e-06)
    numerator = numerator * s + np.float32(-5.69250639462346e-05)
    numerator = numerator * s + np.float32(-7.34990630326855e-04)
    numerator = numerator * s + np.float32(-2.95459980854025e-03)
    numerator = numerator * s + np.float32(-1.60960333262415e-02)
    denominator = np.float32(-1.45660718464996e-05)
    denominator = denominator * s + np.float32(-2.13374055278905e-04)
    denominator = denominator * s + np.float32(-1.68282697438203e-03)
    denominator = denominator * s + np.float32(-7.37332916720468e-03)
    denominator = denominator * s + np.float32(-1.42647390514189e-02)
    return x * numerator / denominator


@njit(**_OPTIONS)
def _density(x):
    """Return exp(-x^2 / 2) / sqrt(2 pi): a series of its 64th root, squared six times."""
    x = min(max(x, np.float32(-6)), np.float32(6))
    t = x * x * np.float32(-1 / 128)
    e = np.float32(1 / 120)
    e = e * t + np.float32(1 / 24)
    e = e * t + np.float32(1 / 6)
    e = e * t + np.float32(1 / 2)
    e = e * t + _ONE
    e = e * t + _ONE
    for _ in range(6):
        e = e * e
    return e * np.float32(0.3989422804014327)


_ROOT_HALF = np.float32(0.7071067811865476)
_HALF = np.float32(0.5)


@njit(parallel=True, **_OPTIONS)
def activate(kind, source, size, target):
    """Write an activation of `size` floats."""
    x, y = carray(_floats(source), (size,)), carray(_floats(target), (size,))
    for k in prange((size + _STEP - 1) // _STEP):
        first, last = np.int64(k) * _STEP, min(size, (np.int64(k) + 1) * _STEP)
        if kind == GELU:
            for i in range(first, last):
                y[i] = _HALF * x[i] * (_ONE + _erf(x[i] * _ROOT_HALF))
        elif kind == RELU:
            for i in range(first, last):
                y[i] = max(x[i], _ZERO)
        elif kind == HARD_SIGMOID:
            for i in range(first, last):
                y[i] = min(max(x[i] + np.float32(3), _ZERO), np.float32(6)) * np.float32(1 / 6)
        else:
            for i in range(first, last):
                y[i] = _ONE / (_ONE + np.exp(-x[i]))


@njit(parallel=True, **_OPTIONS)
def activation_gradient(kind, source, output, gradient, size, target):
    """Write the gradient of the input of `activate`."""
    x, y = carray(_floats(source), (size,)), carray(_floats(output), (size,))
    dy, dx = carray(_floats(gradient), (size,)), carray(_floats(target), (size,))
    for k in prange((size + _STEP - 1) // _STEP):
        first, last = np.int64(k) * _STEP, min(size, (np.int64(k) + 1) * _STEP)
        if kind == GELU:
            for i in range(first, last):
                below = _HALF * (_ONE + _erf(x[i] * _ROOT_HALF))
                dx[i] = dy[i] * (below + x[i] * _density(x[i]))
        elif kind == RELU:
            for i in range(first, last):
                dx[i] = dy[i] if y[i] > 0 else _ZERO
        elif kind == HARD_SIGMOID:
            for i in range(first, last):
                inside = -np.float32(3) < x[i] < np.float32(3)
                dx[i] = dy[i] * np.float32(1 / 6) if inside else _ZERO
        else:
            for i in range(first, last):
                dx[i] = dy[i] * y[i] * (_ONE - y[i])


@njit(parallel=True, **_OPTIONS)
def pool(source, images, positions, channels, target):
    """Write the mean over the positions: [images, channels]."""
    x = carray(_floats(source), (images, positions, channels))
    y = carray(_floats(target), (images, channels))
    share = _ONE / np.float32(positions)
    for n in prange(images):
        mean = y[n]
        mean[:] = 0
        for p in range(positions):
            for c in range(channels):
                mean[c] += x[n, p, c]
        for c in range(channels):
            mean[c] *= share


@njit(parallel=True, **_OPTIONS)
def pool_gradient(gradient, images, positions, channels, target):
    """Write the gradient of the input of `pool`."""
    dy = carray(_floats(gradient), (images, channels))
    dx = carray(_floats(target), (images, positions, channels))
    share = _ONE / np.float32(positions)
    for n in prange(images):
        for p in range(positions):
            for c in range(channels):
                dx[n, p, c] = dy[n, c] * share


@njit(parallel=True, **_OPTIONS)
def scale(source, gate, images, positions, channels, target):
    """Multiply each map by its gate, [images, channels]."""
    x = carray(_floats(source), (images, positions, channels))
    g = carray(_floats(gate), (images, channels))
    y = carray(_floats(target), (images, positions, channels))
    for n in prange(images):
        for p in range(positions):
            for c in range(channels):
                y[n, p, c] = x[n, p, c] * g[n, c]


@njit(parallel=True, **_OPTIONS)
def scale_gradient(gradient, source, gate, images, positions, channels, target, gate_target):
    """Write the gradients of both inputs of `scale`."""
    dy = carray(_floats(gradient), (images, positions, channels))
    x = carray(_floats(source), (images, positions, channels))
    g = carray(_floats(gate), (images, channels))
    dx = carray(_floats(target), (images, positions, channels))
    dg = carray(_floats(gate_target), (images, channels))
    for n in prange(images):
        total = dg[n]
        total[:] = 0
        for p in range(positions):
            for c in range(channels):
                dx[n, p, c] = dy[n, p, c] * g[n, c]
                total[c] += dy[n, p, c] * x[n, p, c]
