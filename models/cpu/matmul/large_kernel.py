"""Depthwise convolution with kernels larger than 7x7 and stride 1, as matrix products.

MegEngine's gradients are naive loops there, and its forward pass is slow. A row of outputs is the
sum, over the rows of the kernel, of a row of the map times a banded matrix of that kernel row's
taps; the products of several kernel rows are one, with their rows of the map side by side.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import megengine.functional as F
import numpy as np
from megengine import Tensor
from megengine.autodiff import Function

from .shared import Axis, reversal, swap, throttle

SMALL_KERNEL = 7  # the largest that MegEngine has a fast forward pass for
_FLOATS = 4 << 20  # of rows side by side and of bands, at a time


@cache
def _bands(axis: Axis) -> Tensor:
    """Return [tap, size * output]: 1 where the tap reads that position for that output."""
    tap, position, output = np.ogrid[: axis.kernel, : axis.size, : axis.output]
    reads = position == output + tap - axis.padding
    return Tensor(reads.astype(np.float32).reshape(axis.kernel, -1))


class LargeKernel(Function):
    """Products of rows of the map with banded matrices.

    Forward and backward together, one image, on a shared core of an Intel Xeon: 128 channels on
    56x56, 31x31: 0.30 s, MegEngine 3.1; 512 on 14x14, 27x27: 0.09, MegEngine 0.28; forward alone
    0.09 and 0.02 s, MegEngine 0.26 and 0.03.
    """

    def __init__(self, rows: Axis, cols: Axis):
        super().__init__()
        self.rows, self.cols = rows, cols

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        self.x, self.weight = x, weight
        return _convolve(x, weight, self.rows, self.cols)

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        rows, cols = (
            Axis(axis.output, axis.kernel, 1, axis.kernel - 1 - axis.padding)
            for axis in (self.rows, self.cols)
        )
        taps = rows.kernel * cols.kernel
        turned = F.matmul(self.weight.reshape(-1, taps), reversal(taps))
        dx = _convolve(dy, turned.reshape(self.weight.shape), rows, cols)
        dw = self.weight_grad(dy)
        del self.x, self.weight
        return dx, dw

    def weight_grad(self, dy: Tensor) -> Tensor:
        """Sum the products of positions and outputs along the bands."""
        c, positions = dy.shape[1], self.cols.size
        dy = swap(dy).reshape(c, -1, self.cols.output)
        parts = []
        for _, rows in _side_by_side(self.x, self.rows, self.cols):
            sums = F.matmul(rows, dy, transpose_a=True)  # [C, kernel rows * W, OW]
            sums = sums.reshape(-1, positions * self.cols.output)
            part = F.matmul(sums, _bands(self.cols), transpose_b=True)
            parts.append(part.reshape(c, -1, self.cols.kernel))
        return F.concat(parts, 1).reshape(self.weight.shape)


def _convolve(x: Tensor, weight: Tensor, rows: Axis, cols: Axis) -> Tensor:
    """Return the convolution of x, [N, C, H, W], with a depthwise kernel: [N, C, OH, OW]."""
    n, c = x.shape[:2]
    weight = weight.reshape(c, rows.kernel, cols.kernel)
    y: Tensor = None
    for taps, part in _side_by_side(x, rows, cols):
        bands = F.matmul(weight[:, taps].reshape(-1, cols.kernel), _bands(cols))
        product = F.matmul(part, bands.reshape(c, -1, cols.output))
        y = product if y is None else y + product
    return swap(y.reshape(c, n, rows.output, cols.output))


def _side_by_side(x: Tensor, rows: Axis, cols: Axis) -> Iterator[tuple[slice, Tensor]]:
    """Yield some kernel rows, and the rows of x that they read: [C, N * OH, kernel rows * W]."""
    n, c, _, w = x.shape
    padded = swap(x)
    if rows.padding:  # by concatenation, as F.nn.pad takes 15x as long
        zeros = F.zeros((c, n, rows.padding, w))
        padded = F.concat([zeros, padded, zeros], 2)
    floats = c * w * (n * rows.output + cols.output)  # of one kernel row, with its bands
    count = max(1, _FLOATS // floats)
    for start in range(0, rows.kernel, count):
        stop = min(start + count, rows.kernel)
        throttle(2 * (stop - start) * floats)
        parts = [padded[:, :, tap : tap + rows.output] for tap in range(start, stop)]
        part = F.concat(parts, 3) if len(parts) > 1 else parts[0]
        yield slice(start, stop), part.reshape(c, n * rows.output, -1)


def applies(rows: Axis, cols: Axis) -> bool:
    """Return whether a convolution is of this kind."""
    return rows.stride == cols.stride == 1 and all(
        axis.kernel > SMALL_KERNEL and axis.padding < axis.kernel for axis in (rows, cols)
    )
