"""Tiles of maps, to and from the transformed form in which Winograd's convolution is a product.

A transformed tile is 6x6 numbers a channel, T x T^T of the tile's values x. They are kept as
[36, tiles, c] with an odd number of tiles, so that the 36 numbers of a channel are not in the same
place of the processor's caches. Maps are [n, h, w, c], matrices T [6, 6].
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit, prange

from .compiled import OPTIONS, floats

TILE = 4  # outputs of a tile along an axis
SIZE = TILE + 2  # numbers of a transformed tile along an axis


@njit(**OPTIONS)
def along(size):
    """Return the number of tiles along an axis of a map."""
    return (size + TILE - 1) // TILE


@njit(**OPTIONS)
def count(n, h, w):
    """Return the number of tiles of maps, an odd one: the last may be of no map."""
    return (n * along(h) * along(w)) | 1


@njit(**OPTIONS)
def _combine(source, step, matrix, c, target, target_step):
    """Write `matrix` times six vectors of c floats, which are `step` floats apart."""
    m = carray(floats(matrix), (SIZE, SIZE))
    x0 = carray(floats(source), (c,))
    x1 = carray(floats(source + 4 * step), (c,))
    x2 = carray(floats(source + 8 * step), (c,))
    x3 = carray(floats(source + 12 * step), (c,))
    x4 = carray(floats(source + 16 * step), (c,))
    x5 = carray(floats(source + 20 * step), (c,))
    for p in range(SIZE):
        y = carray(floats(target + 4 * p * target_step), (c,))
        m0, m1, m2, m3, m4, m5 = m[p, 0], m[p, 1], m[p, 2], m[p, 3], m[p, 4], m[p, 5]
        for i in range(c):
            y[i] = m0 * x0[i] + m1 * x1[i] + m2 * x2[i] + m3 * x3[i] + m4 * x4[i] + m5 * x5[i]


@njit(**OPTIONS)
def _clear_last(target, tiles, c):
    """Write zeros for the last tile; in a parallel function, numba would leave them out."""
    y = carray(floats(target), (SIZE * SIZE, tiles, c))
    for p in range(SIZE * SIZE):
        y[p, tiles - 1] = 0


@njit(parallel=True, **OPTIONS)
def to_tiles(source, matrix, size, border, n, h, w, c, target):
    """Write the transformed tiles of maps.

    A tile has size x size values, of which the first `border` rows and columns are of the tile
    before it; outside of a map they are 0.
    """
    high, wide, tiles = along(h), along(w), count(n, h, w)
    x = carray(floats(source), (n, h, w, c))
    for row in prange(n * high):
        image, top = np.int64(row) // high, np.int64(row) % high * TILE - border
        # rows and columns from `size` on stay 0
        values, half = np.zeros((2, SIZE, SIZE, c), np.float32)
        address, between = values.ctypes.data, half.ctypes.data
        for k in range(wide):
            left = k * TILE - border
            for i in range(size):
                for j in range(size):
                    part = values[i, j]
                    if 0 <= top + i < h and 0 <= left + j < w:
                        given = x[image, top + i, left + j]
                        for ch in range(c):
                            part[ch] = given[ch]
                    else:
                        part[:] = 0
            for j in range(size):
                _combine(address + 4 * j * c, SIZE * c, matrix, c, between + 4 * j * c, SIZE * c)
            first = target + 4 * (np.int64(row) * wide + k) * c
            for p in range(SIZE):
                _combine(
                    between + 4 * p * SIZE * c, c, matrix, c,
                    first + 4 * p * SIZE * tiles * c, tiles * c,
                )  # fmt: skip
    if tiles > n * high * wide:
        _clear_last(target, tiles, c)


@njit(parallel=True, **OPTIONS)
def from_tiles(source, matrix, size, border, n, h, w, c, target):
    """Write the maps whose values are the sums of the tiles that are made of transformed ones."""
    high, wide, tiles = along(h), along(w), count(n, h, w)
    y = carray(floats(target), (n, h, w, c))
    for image in prange(n):
        y[np.int64(image)] = 0
        values, half = np.empty((2, SIZE, SIZE, c), np.float32)
        address, between = values.ctypes.data, half.ctypes.data
        for k in range(high * wide):
            first = source + 4 * (np.int64(image) * high * wide + k) * c
            for p in range(SIZE):
                _combine(
                    first + 4 * p * SIZE * tiles * c, tiles * c, matrix, c,
                    between + 4 * p * SIZE * c, c,
                )  # fmt: skip
            for j in range(size):
                _combine(between + 4 * j * c, SIZE * c, matrix, c, address + 4 * j * c, SIZE * c)
            top, left = k // wide * TILE - border, k % wide * TILE - border
            for i in range(size):
                for j in range(size):
                    if 0 <= top + i < h and 0 <= left + j < w:
                        part, total = values[i, j], y[np.int64(image), top + i, left + j]
                        for ch in range(c):
                            total[ch] += part[ch]
