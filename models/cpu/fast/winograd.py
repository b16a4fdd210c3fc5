"""3x3 convolutions as matrix products of transformed tiles, which take fewer multiplications.

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016 (arXiv
1509.09308). A tile of 4x4 outputs takes 36 multiplications for each pair of channels, not 144. The
gradients are computed as exactly those of the forward pass: each of its transforms has a transposed
one. oneDNN has no such convolution for these processors. A step of RepVGGB1 on 16 images of 128 px
takes 1.75 s instead of 2.37 s, one of RepVGGA0 on 64 images of 32 px with a total stride of 8 takes
1.0 s instead of 1.17 s (Intel Xeon, AVX-512, 2 cores).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import onednn
from .executor import Code
from .onednn_layers import Geometry
from .places import Buffer, Place
from .records import Records
from .winograd_kernels import SIZE, TILE, along, count

# Five points for the polynomials, which with infinity give the transforms. The integers that are
# usual make errors four times as large, 1e-5 of the largest output.
_POINTS = (0, 3 / 4, -3 / 4, 3 / 2, -3 / 2)
_CHANNELS, _TILES = 96, 64  # from when on it is faster than oneDNN
_NUMBERS = SIZE**2  # of a transformed tile


def _matrices(points: Sequence[float]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the transforms of inputs [6, 6], weights [6, 3] and, transposed, outputs [6, 4].

    They are those of Toom and Cook: polynomials are multiplied by their values in `points`.
    """
    inputs, weights, outputs = np.zeros((SIZE, SIZE)), np.zeros((SIZE, 3)), np.zeros((SIZE, TILE))
    for row, point in enumerate(points):
        others = [other for other in points if other != point]
        inputs[row, : SIZE - 1] = np.poly(others)[::-1]
        weights[row] = point ** np.arange(3) / np.prod(point - np.array(others))
        outputs[row] = point ** np.arange(TILE)
    inputs[-1], weights[-1, -1], outputs[-1, -1] = np.poly(points)[::-1], 1, 1
    return inputs, weights, outputs


def _square(matrix: np.ndarray) -> np.ndarray:
    """Return a matrix as float32 [6, 6], with zeros behind its rows and columns."""
    square = np.zeros((SIZE, SIZE), np.float32)
    square[: matrix.shape[0], : matrix.shape[1]] = matrix
    return square


_inputs, _weights, _outputs = _matrices(_POINTS)
# of tiles of [6, 6] inputs and of [4, 4] gradients, and back to gradients and outputs
_FROM_INPUT, _TO_INPUT_GRADIENT = _square(_inputs), _square(_inputs.T)
_FROM_GRADIENT, _TO_OUTPUT = _square(_outputs), _square(_outputs.T)
_WEIGHTS = np.kron(_weights, _weights).astype(np.float32)  # [36, 9]


def suits(geometry: Geometry) -> bool:
    """Return whether a convolution is faster this way.

    Weights have to be transformed too, for whatever number of tiles, and tiles at the end of a map
    may have few outputs.
    """
    g = geometry
    plain = (g.kernel, g.stride, g.padding, g.groups, g.bias) == (3, 1, 1, 1, False)
    tiles = along(g.h) * along(g.w)
    fewer = 9 * g.h * g.w / (_NUMBERS * tiles)  # multiplications without for one with
    return plain and min(g.i, g.o) >= _CHANNELS and g.n * tiles >= _TILES and fewer >= 2.5


class WinogradConvolution:
    """A convolution in a program, as `convolution.Convolution` is one.

    Args:
        records: where it is written.
        geometry: its sizes.
        weight: the weight.
        weight_gradient: where its gradient is written.
    """

    def __init__(self, records: Records, geometry: Geometry, weight: Place, weight_gradient: Place):
        self._records, self._geometry = records, geometry
        self._weight, self._weight_gradient = weight, weight_gradient
        self._tiles = count(geometry.n, geometry.h, geometry.w)
        self._x = Buffer(0)

    def forward(self, x: Buffer, y: Buffer) -> None:
        """Compute y from x, which the gradient of the weight needs too."""
        g, self._x = self._geometry, x
        outputs = Buffer(_NUMBERS * self._tiles * g.o)
        product = onednn.products(_NUMBERS, self._tiles, g.i, g.o, transposed="weights")
        self._records.multiply(product, self._inputs(), self._weights(), outputs)
        self._transform(Code.FROM_TILES, outputs, _TO_OUTPUT, TILE, g.o, y)

    def backward(self, gradient: Buffer, target: Buffer | None) -> None:
        """Compute the gradients of the weight, and in `target`, if given, that of the input."""
        g, tiles = self._geometry, self._tiles
        gradients = Buffer(_NUMBERS * tiles * g.o)
        self._transform(Code.TO_TILES, gradient, _FROM_GRADIENT, TILE, g.o, gradients)
        weights = Buffer(_NUMBERS * g.o * g.i)
        product = onednn.products(_NUMBERS, g.o, tiles, g.i, transposed="source")
        self._records.multiply(product, gradients, self._inputs(), weights)
        product = onednn.products(1, g.o * g.i, _NUMBERS, 9, transposed="source")
        self._records.multiply(product, weights, _WEIGHTS.ctypes.data, self._weight_gradient)
        if target is not None:
            inputs = Buffer(_NUMBERS * tiles * g.i)
            product = onednn.products(_NUMBERS, tiles, g.o, g.i)
            self._records.multiply(product, gradients, self._weights(), inputs)
            self._transform(Code.FROM_TILES, inputs, _TO_INPUT_GRADIENT, SIZE, g.i, target)

    def _inputs(self) -> Buffer:
        """Return the transformed tiles of the input, [36, tiles, i]."""
        g = self._geometry
        target = Buffer(_NUMBERS * self._tiles * g.i)
        self._transform(Code.TO_TILES, self._x, _FROM_INPUT, SIZE, g.i, target)
        return target

    def _weights(self) -> Buffer:
        """Return the transformed weights, [36, o, i]."""
        g = self._geometry
        target = Buffer(_NUMBERS * g.o * g.i)
        product = onednn.products(1, _NUMBERS, 9, g.o * g.i, transposed="weights")
        self._records.multiply(product, _WEIGHTS.ctypes.data, self._weight, target)
        return target

    def _transform(
        self,
        code: Code,
        source: Buffer,
        matrix: np.ndarray,
        size: int,
        channels: int,
        target: Buffer,
    ) -> None:
        """Transform tiles of `size` x `size` values, of which those of inputs overlap."""
        g, border = self._geometry, int(size == SIZE)
        sizes = size, border, g.n, g.h, g.w, channels
        self._records.emit(code, source, matrix.ctypes.data, *sizes, target)
