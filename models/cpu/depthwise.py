"""Depthwise convolution, of one input and one output a channel, with fast gradients on a CPU core.

Stock's gradients are naive loops, and its forward works map by map, which small maps feel. Here
all is MegEngine's own operators in a fixed order. Figures: as in convolution.py, forward and
backward together at batch 16, 3x3 where nothing else is said.
"""

from __future__ import annotations

from functools import cache

import megengine.functional as F
import numpy as np
from megengine import Tensor
from megengine.autodiff import Function
from megengine.core._imperative_rt.core2 import apply
from megengine.core.ops.builtin import Reduce

from .shared import Line, output_size, throttle

# _Pairs up to so many pairs: 480 channels on 2x2 (16 pairs): 0.5 ms, _Dense 1.9; 336 on 4x4, 5x5
# (196 pairs): 4.2, _Dense 1.5.
_PAIRS = 64
# _Dense up to so many elements a matrix: 192 channels on 8x8, stride 2 (1024 elements): 1.2 ms,
# _Large 2.6; stride 1 (4096): 2.3, _Large 2.2.
_DENSE = 1024

_SUM_0 = Reduce(mode="sum", axis=0)
_SUM_2 = Reduce(mode="sum", axis=2)


def _reads(line: Line) -> np.ndarray:
    """[tap, size, output]: 1 where the tap reads that position for that output."""
    size, kernel, stride, padding = line
    tap, p, q = np.ogrid[:kernel, :size, : output_size(line)]
    return (p == q * stride + tap - padding).astype(np.float32)


def _reads_2d(rows: Line, cols: Line) -> np.ndarray:
    """[kh * kw, H * W, OH * OW]"""
    both = np.einsum("ipq,jrs->ijprqs", _reads(rows), _reads(cols))
    return both.reshape(rows[1] * cols[1], rows[0] * cols[0], -1)


@cache
def _row_reads(line: Line) -> Tensor:
    return Tensor(_reads(line).reshape(line[1], -1))


@cache
def _dense_reads(rows: Line, cols: Line) -> Tensor:
    return Tensor(_reads_2d(rows, cols).reshape(rows[1] * cols[1], -1))


@cache
def _pairs(rows: Line, cols: Line) -> tuple[Tensor, Tensor, Tensor]:
    """For each pair of a position and an output that reads it, its tap, position and output.

    As one-hot columns: [kh * kw, pairs], [H * W, pairs], [OH * OW, pairs].
    """
    reads = _reads_2d(rows, cols)
    one_hot = (np.eye(n)[:, i] for n, i in zip(reads.shape, np.nonzero(reads), strict=True))
    tap, p, q = (Tensor(np.ascontiguousarray(m, np.float32)) for m in one_hot)
    return tap, p, q


@cache
def _reversal(taps: int) -> Tensor:
    return Tensor(np.eye(taps, dtype=np.float32)[::-1].copy())


@cache
def _spacing(size: int, stride: int) -> Tensor:
    """[size, size * stride], to put stride - 1 zeros after each element."""
    return Tensor(np.eye(size * stride, dtype=np.float32)[::stride].copy())


def _swap(x: Tensor) -> Tensor:
    """Swaps the first two axes."""
    return F.transpose(x, (1, 0, *range(2, x.ndim)))


class _Depthwise(Function):
    def __init__(self, rows: Line, cols: Line):
        super().__init__()
        self.rows, self.cols = rows, cols
        self.out = output_size(rows), output_size(cols)


class _Scale(_Depthwise):
    """1x1, stride 1: a factor a channel. 64 channels on 32x32: 3 ms, stock 19."""

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

    1280 channels on 2x2: 0.9 ms, stock 40. Products with one-hot matrices spread and gather.
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
    """Small maps: one matrix a channel, from all positions to all outputs.

    512 channels on 4x4: 2.2 ms, stock 17.
    """

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        n, c = x.shape[:2]
        self.x_shape, self.w_shape = x.shape, weight.shape
        self.reads = _dense_reads(self.rows, self.cols)
        self.v = _swap(x.reshape(n, c, -1))
        self.m = F.matmul(weight.reshape(c, -1), self.reads).reshape(c, self.v.shape[2], -1)
        return _swap(F.matmul(self.v, self.m)).reshape(n, c, *self.out)

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        n, c = self.x_shape[:2]
        d = _swap(dy.reshape(n, c, -1))
        dm = F.matmul(self.v, d, transpose_a=True).reshape(c, -1)
        dw = F.matmul(dm, self.reads, transpose_b=True).reshape(self.w_shape)
        dx = _swap(F.matmul(d, self.m, transpose_b=True)).reshape(self.x_shape)
        del self.v, self.m
        return dx, dw


class _Large(_Depthwise):
    """Large maps: stock's forward, for the input gradient too; one matrix product a kernel row.

    96 channels on 16x16: 2.8 ms, stock 29; on 32x32, 11 and 105.
    """

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        self.x, self.weight = x, weight
        stride, padding = zip(self.rows[2:], self.cols[2:], strict=True)
        return F.conv2d(x, weight, None, stride, padding, 1, x.shape[1])

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        throttle((4 + self.rows[1]) * self.x.size + 4 * dy.size)
        dx, dw = self.input_grad(dy), self.weight_grad(dy)
        del self.x, self.weight
        return dx, dw

    def input_grad(self, dy: Tensor) -> Tensor:
        """dy, with zeros in between for the stride, convolved with the reversed kernel."""
        n, c, h, w = self.x.shape
        (_, kh, sh, ph), (_, kw, sw, pw) = self.rows, self.cols
        oh, ow = self.out
        if sw > 1:  # concat, as for the rows, takes twice as long
            dy = F.matmul(dy.reshape(-1, ow), _spacing(ow, sw))
        if sh > 1:
            zeros = F.zeros((n, c, oh, (sh - 1) * sw * ow))
            dy = F.concat([dy.reshape(n, c, oh, sw * ow), zeros], 3)
        dy = dy.reshape(n, c, sh * oh, sw * ow)
        weight = F.matmul(self.weight.reshape(c, -1), _reversal(kh * kw))
        padding = kh - 1 - ph, kw - 1 - pw
        dx = F.conv2d(dy, weight.reshape(self.weight.shape), None, 1, padding, 1, c)
        return dx if dx.shape[2:] == (h, w) else dx[:, :, :h, :w]

    def weight_grad(self, dy: Tensor) -> Tensor:
        """Each kernel row's products of all columns of x with all of dy, [C, W, OW].

        Then the sums along their diagonals.
        """
        n, c, h, w = self.x.shape
        _, kernel, stride, padding = self.rows
        oh, ow = self.out
        dy = _swap(dy).reshape(c, n * oh, ow)
        reach = stride * (oh - 1) + 1
        counts = padding, kernel - 1 - padding + reach - h
        zeros = [F.zeros((c, n, max(count, 0), w)) for count in counts]
        parts = [part for part in (zeros[0], _swap(self.x), zeros[1]) if part.shape[2]]
        x = F.concat(parts, 2) if len(parts) > 1 else parts[0]
        rows = (x[:, :, i : i + reach : stride].reshape(c, -1, w) for i in range(kernel))
        sums = F.stack([F.matmul(row, dy, transpose_a=True) for row in rows], 1)
        dw = F.matmul(sums.reshape(c * kernel, -1), _row_reads(self.cols), transpose_b=True)
        return dw.reshape(self.weight.shape)


@cache
def choose(rows: Line, cols: Line) -> type[_Depthwise] | None:
    """What is fastest for this geometry, None where nothing here applies."""
    if rows[1:] == cols[1:] == (1, 1, 0):
        return _Scale
    positions = rows[0] * cols[0]
    outputs = output_size(rows) * output_size(cols)
    if positions * outputs <= _DENSE:
        return _Pairs if _reads(rows).sum() * _reads(cols).sum() <= _PAIRS else _Dense
    return _Large if rows[3] < rows[1] and cols[3] < cols[1] else None
