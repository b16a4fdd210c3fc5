"""Convolution whose gradients are fast on one CPU core, where MegEngine's own are naive loops.

It is built from MegEngine's operators in a fixed order, so that results are the same bits in every
run. Times in comments: MegEngine 1.13.0, one core of an AMD EPYC (Zen 4), MKL_DEBUG_CPU_TYPE=5.
"""

from __future__ import annotations

from functools import cache
from math import prod

import megengine.functional as F
import numpy as np
from megengine import Tensor
from megengine.autodiff import Function
from megengine.core._imperative_rt.core2 import apply
from megengine.core.ops.builtin import ConvolutionBackwardData

from . import depthwise, large_kernel
from .shared import Axis, throttle

# Maps of up to 8x8 positions go through _SmallConv: 3x3 on 8x8, 96 channels: 5.0 ms against 7.2.
# Above, its transforms (dense in the positions) cost more than they save (16x16, stride 2: 8 ms
# against 6).
SMALL_MAP = 64
# Columns built at a time for the weight gradient of a large map.
_COLUMN_FLOATS = 2 << 20


@cache
def _taps(axis: Axis) -> dict[int, int]:
    """Return the position that each tap reads for output 0, without taps that read padding only."""
    size, kernel, stride, padding = axis
    reach = stride * axis.output
    firsts = {tap: tap - padding for tap in range(kernel)}
    return {
        tap: first
        for tap, first in firsts.items()
        if any(0 <= position < size for position in range(first, first + reach, stride))
    }


@cache
def _transforms(axis: Axis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return B, G and A of y = sum over f, t of A[f, t] * (B[f, t] . x) * (G[f] . w), for one axis.

    B transforms the map, G the weights, and A the products to outputs, as in Winograd's algorithms.
    f counts the products with different functions of the weights w, and t the tiles of the map x
    that are multiplied by the same one. B is [f, t, size], G [f, kernel], A [f, t, output].
    """
    size, kernel, stride, padding = axis
    out, taps = axis.output, _taps(axis)
    if axis == (2, 3, 1, 1):  # Karatsuba: 3 products for the 4 of two outputs from two inputs
        b = np.array([[1, 1], [0, 1], [1, 0]])[:, None]
        g = np.array([[0, 1, 0], [0, -1, 1], [1, -1, 0]])
        a = np.array([[1, 1], [1, 0], [0, 1]])[:, None]
    elif kernel == 3 and stride == 1 and out > 1:  # Winograd's F(2, 3): 4 products for 6
        tiles = (out + 1) // 2
        b = np.zeros((4, tiles, max(2 * tiles + 2, size + padding)))
        g = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
        a = np.zeros((4, tiles, 2 * tiles))
        for t in range(tiles):
            b[:, t, 2 * t : 2 * t + 4] = [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]]
            a[:, t, 2 * t : 2 * t + 2] = [[1, 0], [1, 1], [1, -1], [0, -1]]
        b, a = b[:, :, padding : padding + size], a[:, :, :out]
    else:  # one product per tap, one tile per output
        b = np.zeros((len(taps), out, size))
        g = np.eye(kernel)[list(taps)]
        a = np.stack([np.eye(out)] * len(taps))
        for f, first in enumerate(taps.values()):
            for t in range(out):
                if 0 <= first + t * stride < size:
                    b[f, t, first + t * stride] = 1
    return b, g, a


@cache
def _transforms_2d(rows: Axis, cols: Axis) -> tuple[Tensor, Tensor, Tensor]:
    """Return B [f * t, H * W], G [f, kh * kw] and A [f * t, OH * OW] for both axes at once."""
    (b, g, a), (b2, g2, a2) = _transforms(rows), _transforms(cols)
    b = np.einsum("ftp,gsq->fgtspq", b, b2).reshape(-1, b.shape[2] * b2.shape[2])
    g = np.einsum("fi,gj->fgij", g, g2).reshape(len(g) * len(g2), -1)
    a = np.einsum("ftp,gsq->fgtspq", a, a2).reshape(len(b), -1)
    b, g, a = (Tensor(np.ascontiguousarray(m, np.float32)) for m in (b, g, a))
    return b, g, a


class _Conv(Function):
    def __init__(self, rows: Axis, cols: Axis, groups: int):
        super().__init__()
        self.rows, self.cols, self.groups = rows, cols, groups


class _SmallConv(_Conv):
    """Convolution of small maps: matrix products over the whole batch, from and to [N, C, H, W].

    MegEngine computes them image by image (192 -> 1280 channels onto 1x1 maps: 668 ms against 4).
    Copying shifted maps would cost nearly as much as the products, so shifts are products as well,
    with small constant matrices that also drop padding and save products (see _transforms).
    """

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        self.b, self.g, self.a = _transforms_2d(self.rows, self.cols)
        self.x_shape, self.weight = x.shape, weight
        self.v = self.spread(self.b, x)
        m = F.matmul(self.v, self.spread_weight(), transpose_b=True)  # [f, t * N, O]
        size = self.rows.output, self.cols.output
        return self.join(self.a, m, (x.shape[0], prod(weight.shape[:-3]), *size))

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        dm = self.spread(self.a, dy)
        du = F.matmul(dm, self.v, transpose_a=True).reshape(self.g.shape[0], -1)  # [f, O * C]
        dw = F.matmul(du, self.g, transpose_a=True).reshape(self.weight.shape)
        dx = self.join(self.b, F.matmul(dm, self.spread_weight()), self.x_shape)
        del self.v, self.weight
        return dx, dw

    def spread_weight(self) -> Tensor:
        """Return [f * G, O / G, C / G], up to 16/9 of the weight; backward computes it again."""
        u = F.matmul(self.g, self.weight.reshape(-1, self.g.shape[1]), transpose_b=True)
        return u.reshape(self.g.shape[0] * self.groups, -1, self.weight.shape[-3])

    def spread(self, matrix: Tensor, x: Tensor) -> Tensor:
        """Multiply a matrix [f * t, P] and maps [N, C, H, W] to [f * G, t * N, C / G]."""
        (n, c), f, g = x.shape[:2], self.g.shape[0], self.groups
        if g > 1:
            x = F.transpose(x.reshape(n, g, -1), (1, 0, 2))
        v = F.matmul(matrix, x.reshape(n * c, -1), transpose_b=True)
        if g > 1:
            v = F.transpose(v.reshape(f, -1, g, n * c // g), (0, 2, 1, 3))
        return v.reshape(f * g, -1, c // g)

    def join(self, matrix: Tensor, v: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Multiply as the adjoint of spread does, from [f * G, t * N, C / G] to [N, C, H, W]."""
        (n, c), f, g = shape[:2], self.g.shape[0], self.groups
        if g > 1:
            v = F.transpose(v.reshape(f, g, -1, n * c // g), (0, 2, 1, 3))
        x = F.matmul(v.reshape(-1, n * c), matrix, transpose_a=True)
        if g > 1:
            x = F.transpose(x.reshape(g, n, -1), (1, 0, 2))
        return x.reshape(shape)


def _cut(x: Tensor, dim: int, start: int, stop: int, step: int = 1) -> Tensor:
    if (start, stop, step) == (0, x.shape[dim], 1):
        return x
    return x[(slice(None),) * dim + (slice(start, stop, step),)]


def _unfold(x: Tensor, dim: int, axis: Axis) -> Tensor:
    """Put shifted copies side by side: [C, t, .., size, ..] -> [C, kernel * t, .., output, ..]."""
    size, kernel, stride, padding = axis
    reach = stride * (axis.output - 1) + 1
    # Zeros by concatenation: F.nn.pad takes 15x as long.
    counts = (padding, kernel - 1 - padding + reach - size)
    zeros = [F.zeros((*x.shape[:dim], max(n, 0), *x.shape[dim + 1 :])) for n in counts]
    parts = [part for part in (zeros[0], x, zeros[1]) if part.shape[dim]]
    x = F.concat(parts, dim) if len(parts) > 1 else x
    parts = [_cut(x, dim, tap, tap + reach, stride) for tap in range(kernel)]
    return F.concat(parts, 1) if kernel > 1 else parts[0]


class _StockConv(_Conv):
    """Convolution of large maps: MegEngine's but for the weight gradient.

    Its forward pass and input gradient run at 50 to 90 GFLOP/s, its weight gradient at 1. Here this
    is a matrix product with the columns (im2col) of a few images at a time.
    """

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        self.x, self.weight = x, weight
        stride, padding = zip(self.rows[2:], self.cols[2:], strict=True)
        return F.conv2d(x, weight, None, stride, padding, 1, self.groups)

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor]:
        n, c, h, w = self.x.shape
        o, g = dy.shape[1], self.groups
        group = (g,) if g > 1 else ()
        taps = self.rows.kernel * self.cols.kernel
        column = c * taps * dy.shape[2] * dy.shape[3]
        throttle(8 * (self.x.size + dy.size) + 2 * min(n * column, _COLUMN_FLOATS))
        step = max(1, _COLUMN_FLOATS // column)
        dw: Tensor = None
        for i in range(0, n, step):
            x, d = (
                F.transpose(_cut(t, 0, i, min(i + step, n)), (1, 0, 2, 3)) for t in (self.x, dy)
            )
            columns = _unfold(_unfold(x.reshape(c, 1, -1, h, w), 4, self.cols), 3, self.rows)
            columns = columns.reshape(*group, c * taps // g, -1)
            part = F.matmul(d.reshape(*group, o // g, -1), columns, transpose_b=True)
            dw = part if dw is None else dw + part
        dx = self.input_grad(dy)
        dw = dw.reshape(self.weight.shape)
        del self.x, self.weight
        return dx, dw

    def input_grad(self, dy: Tensor) -> Tensor:
        # Not F.conv_transpose2d: with groups, or in width alone, its output_padding goes wrong.
        op = ConvolutionBackwardData(
            stride_h=self.rows.stride,
            stride_w=self.cols.stride,
            pad_h=self.rows.padding,
            pad_w=self.cols.padding,
            sparse="group" if self.groups > 1 else "dense",
        )
        return apply(op, self.weight, dy, Tensor(self.x.shape, dtype="int32"))[0]


def conv2d(
    x: Tensor,
    weight: Tensor,
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (0, 0),
    groups: int = 1,
) -> Tensor:
    """Return F.conv2d(x, weight, None, stride, padding, 1, groups), with fast gradients.

    `x` is [N, C, H, W]; `weight` is [O, C, kh, kw], or [G, O/G, C/G, kh, kw] with groups.
    """
    geometry = zip(x.shape[2:], weight.shape[-2:], stride, padding, strict=True)
    rows, cols = (Axis(*axis) for axis in geometry)
    if not (len(x) and _taps(rows) and _taps(cols)):  # no images, or all windows in the padding
        return F.conv2d(x, weight, None, stride, padding, 1, groups)
    multiplier = prod(weight.shape[:-2]) // groups  # outputs of each channel of a depthwise kernel
    if groups == x.shape[1] and (multiplier == 1 or groups > 1):
        large = large_kernel.applies(rows, cols)
        kind = large_kernel.LargeKernel if large else depthwise.choose(rows, cols)
        if kind is not None:
            if multiplier > 1:  # 96 channels on 8x8, 7x7, stride 2, 2 outputs: 7 ms, MegEngine 32
                x = depthwise.repeat(x, multiplier)
                weight = weight.reshape(-1, 1, 1, *weight.shape[-2:])
            return kind(rows, cols)(x, weight)
    area = max(rows.size * cols.size, rows.output * cols.output)
    # Products with few channels per group are slow: depthwise 3x3 on 4x4 takes 12 ms, MegEngine 6.
    limit = SMALL_MAP if groups == 1 or weight.shape[-3] >= 8 else 4
    kind = _SmallConv if area <= limit else _StockConv
    return kind(rows, cols, groups)(x, weight)
