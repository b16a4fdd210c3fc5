"""Depthwise convolution with one output per input channel, and gradients fast on a CPU core.

MegEngine's own gradients are naive loops, and its forward pass works map by map, which is slow for
small maps. Here everything is built from MegEngine's operators in a fixed order. Times: as in
convolution.py, forward and backward together at batch 16, 3x3 unless said otherwise.
"""

from __future__ import annotations

from functools import cache

import megengine.functional as F
import numpy as np
from megengine import Tensor
from megengine.autodiff import Function
from megengine.core._imperative_rt.core2 import apply
from megengine.core.ops.builtin import Reduce

from .shared import Axis, reversal, swap, throttle

# The most pairs for _Pairs: 480 channels on 2x2 (16 pairs): 0.5 ms, _Dense 1.9; 336 on 4x4, 5x5
# (196 pairs): 4.2, _Dense 1.5.
_PAIRS = 64
# The largest matrix for _Dense: 192 channels on 8x8, stride 2 (1024 elements): 1.2 ms, _Large 2.6;
# stride 1 (4096 elements): 2.3, _Large 2.2.
_DENSE = 1024

_SUM_0 = Reduce(mode="sum", axis=0)
_SUM_2 = Reduce(mode="sum", axis=2)


def _reads(axis: Axis) -> np.ndarray:
    """Return [tap, size, output]: 1 where the tap reads that position for that output."""
    size, kernel, stride, padding = axis
    tap, p, q = np.ogrid[:kernel, :size, : axis.output]
    return (p == q * stride + tap - padding).astype(np.float32)


def _reads_2d(rows: Axis, cols: Axis) -> np.ndarray:
    """Return the same for both axes at once: [kh * kw, H * W, OH * OW]."""
    both = np.einsum("ipq,jrs->ijprqs", _reads(rows), _reads(cols))
    return both.reshape(rows.kernel * cols.kernel, rows.size * cols.size, -1)


@cache
def _row_reads(axis: Axis) -> Tensor:
    return Tensor(_reads(axis).reshape(axis.kernel, -1))


@cache
def _dense_reads(rows: Axis, cols: Axis) -> Tensor:
    return Tensor(_reads_2d(rows, cols).reshape(rows.kernel * cols.kernel, -1))


@cache
def _pairs(rows: Axis, cols: Axis) -> tuple[Tensor, Tensor, Tensor]:
    """Return tap, position and output of each pair of a position and an output that reads it.

    They are one-hot columns: [kh * kw, pairs], [H * W, pairs], [OH * OW, pairs].
    """
    reads = _reads_2d(rows, cols)
    one_hot = (np.eye(n)[:, i] for n, i in zip(reads.shape, np.nonzero(reads), strict=True))
    tap, p, q = (Tensor(np.ascontiguousarray(m, np.float32)) for m in one_hot)
    return tap, p, q


@cache
def _spacing(size: int, stride: int) -> Tensor:
    """Return the matrix [size, size * stride] that puts stride - 1 zeros after each element."""
    return Tensor(np.eye(size * stride, dtype=np.float32)[::stride].copy())


class _Depthwise(Function):
    def __init__(self, rows: Axis, cols: Axis):
        super().__init__()
        self.rows, self.cols = rows, cols
        self.out = rows.output, cols.output


class _Scale(_Depthwise):
    """A 1x1 kernel with stride 1: one factor per channel.

    64 channels on 32x32: 3 ms, MegEngine 19.
    """

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        n, c = x.shape[:2]
        self.w_shape = weight.shape
        self.x, self.weight = x.reshape(n, c, -1), weight.reshape(1, c, 1)
        return (self.x * self.weight).reshape(x.shape)

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        n, c = dy.shape[:2]
        d = dy.reshape(n, c, -1)
        dw = apply(_SUM_0, apply(_SUM_2, d * self.x)[0])[0]
        dx = (d * self.weight).reshape(dy.shape)
        del self.x, self.weight
        return dx, dw.reshape(self.w_shape)


class _Pairs(_Depthwise):
    """Smallest maps: an elementwise product over all pairs of a position and an output.

    Products with one-hot matrices spread and gather. 1280 channels on 2x2: 0.9 ms, MegEngine 40.
    """

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        n, c = x.shape[:2]
        self.x_shape, self.w_shape = x.shape, weight.shape
        self.tap, self.p, self.q = _pairs(self.rows, self.cols)
        self.w = F.matmul(weight.reshape(c, -1), self.tap).reshape(1, -1)
        self.v = F.matmul(x.reshape(n * c, -1), self.p).reshape(n, -1)
        y = F.matmul((self.v * self.w).reshape(n * c, -1), self.q, transpose_b=True)
        return y.reshape(n, c, *self.out)

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        n, c = self.x_shape[:2]
        d = F.matmul(dy.reshape(n * c, -1), self.q).reshape(n, -1)
        dw = F.matmul(apply(_SUM_0, d * self.v)[0].reshape(c, -1), self.tap, transpose_b=True)
        dx = F.matmul((d * self.w).reshape(n * c, -1), self.p, transpose_b=True)
        del self.v, self.w
        return dx.reshape(self.x_shape), dw.reshape(self.w_shape)


class _Dense(_Depthwise):
    """Small maps: one matrix per channel, from all positions to all outputs.

    512 channels on 4x4: 2.2 ms, MegEngine 17.
    """

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        n, c = x.shape[:2]
        self.x_shape, self.w_shape = x.shape, weight.shape
        self.reads = _dense_reads(self.rows, self.cols)
        self.v = swap(x.reshape(n, c, -1))
        self.m = F.matmul(weight.reshape(c, -1), self.reads).reshape(c, self.v.shape[2], -1)
        return swap(F.matmul(self.v, self.m)).reshape(n, c, *self.out)

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        n, c = self.x_shape[:2]
        d = swap(dy.reshape(n, c, -1))
        dm = F.matmul(self.v, d, transpose_a=True).reshape(c, -1)
        dw = F.matmul(dm, self.reads, transpose_b=True).reshape(self.w_shape)
        dx = swap(F.matmul(d, self.m, transpose_b=True)).reshape(self.x_shape)
        del self.v, self.m
        return dx, dw


class _Large(_Depthwise):
    """Large maps: MegEngine's forward pass, which computes the input gradient as well.

    The weight gradient takes one matrix product per row of the kernel. 96 channels on 16x16:
    2.8 ms, MegEngine 29; on 32x32: 11, MegEngine 105.
    """

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        self.x, self.weight = x, weight
        stride, padding = zip(self.rows[2:], self.cols[2:], strict=True)
        return F.conv2d(x, weight, None, stride, padding, 1, x.shape[1])

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        throttle((4 + self.rows.kernel) * self.x.size + 4 * dy.size)
        dx, dw = self.input_grad(dy), self.weight_grad(dy)
        del self.x, self.weight
        return dx, dw

    def input_grad(self, dy: Tensor) -> Tensor:
        """Convolve dy, spread with zeros for the stride, with the reversed kernel."""
        n, c, h, w = self.x.shape
        (_, kh, sh, ph), (_, kw, sw, pw) = self.rows, self.cols
        oh, ow = self.out
        if sw > 1:  # concat, as for the rows, takes twice as long
            dy = F.matmul(dy.reshape(-1, ow), _spacing(ow, sw))
        if sh > 1:
            zeros = F.zeros((n, c, oh, (sh - 1) * sw * ow))
            dy = F.concat([dy.reshape(n, c, oh, sw * ow), zeros], 3)
        dy = dy.reshape(n, c, sh * oh, sw * ow)
        weight = F.matmul(self.weight.reshape(c, -1), reversal(kh * kw))
        padding = kh - 1 - ph, kw - 1 - pw
        dx = F.conv2d(dy, weight.reshape(self.weight.shape), None, 1, padding, 1, c)
        return dx if dx.shape[2:] == (h, w) else dx[:, :, :h, :w]

    def weight_grad(self, dy: Tensor) -> Tensor:
        """Multiply all columns of x and of dy, [C, W, OW], for each row of the kernel.

        The weight gradients are the sums along the diagonals of these products.
        """
        n, c, h, w = self.x.shape
        _, kernel, stride, padding = self.rows
        oh, ow = self.out
        dy = swap(dy).reshape(c, n * oh, ow)
        reach = stride * (oh - 1) + 1
        counts = padding, kernel - 1 - padding + reach - h
        zeros = [F.zeros((c, n, max(count, 0), w)) for count in counts]
        parts = [part for part in (zeros[0], swap(self.x), zeros[1]) if part.shape[2]]
        x = F.concat(parts, 2) if len(parts) > 1 else parts[0]
        rows = (x[:, :, i : i + reach : stride].reshape(c, -1, w) for i in range(kernel))
        sums = F.stack([F.matmul(row, dy, transpose_a=True) for row in rows], 1)
        dw = F.matmul(sums.reshape(c * kernel, -1), _row_reads(self.cols), transpose_b=True)
        return dw.reshape(self.weight.shape)


def repeat(x: Tensor, times: int) -> Tensor:
    """Return each channel several times in a row: [N, C, H, W] -> [N, C * times, H, W]."""
    n, c, h, w = x.shape
    return F.broadcast_to(x.reshape(n, c, 1, h, w), (n, c, times, h, w)).reshape(n, -1, h, w)


@cache
def choose(rows: Axis, cols: Axis) -> type[_Depthwise] | None:
    """Return the class that is fastest for this geometry; None if none here applies."""
    if rows[1:] == cols[1:] == (1, 1, 0):
        return _Scale
    positions = rows.size * cols.size
    outputs = rows.output * cols.output
    if positions * outputs <= _DENSE:
        return _Pairs if _reads(rows).sum() * _reads(cols).sum() <= _PAIRS else _Dense
    return _Large if rows.padding < rows.kernel and cols.padding < cols.kernel else None
