"""A convolution of a traced network and its gradients, written down as records.

oneDNN computes most convolutions. Where it is slow, loops of depthwise_kernels.py or matrix
products take its place; winograd.py takes the place of wide 3x3 ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..symbol import Operation
from . import onednn, winograd
from .executor import Code
from .onednn_layers import ConvolutionPrimitives, Geometry
from .places import Buffer, Place
from .records import Records
from .slots import Slots
from .winograd import WinogradConvolution


def convolution_of(
    records: Records, slots: Slots, operations: list[Operation], number: int, bfloat16: bool
) -> Convolution | WinogradConvolution:
    """Return the convolution that an operation is, by what is fastest.

    Args:
        records: where it is written.
        slots: slots of what is outside of the program.
        operations: those of the trace.
        number: of the convolution.
        bfloat16: whether it is rounded to bfloat16, unless it is depthwise or grouped.
    """
    geometry, first = geometry_of(operations, number), slots.first_parameter[number]
    indices = range(first, first + 1 + geometry.bias)
    parameters = [slots.of("parameters", index) for index in indices]
    gradients = [slots.of("parameter_gradients", index) for index in indices]
    if not bfloat16 and winograd.suits(geometry):
        return WinogradConvolution(records, geometry, parameters[0], gradients[0])
    return Convolution(records, geometry, parameters, gradients, bfloat16)


def geometry_of(operations: list[Operation], number: int) -> Geometry:
    """Return the sizes of a convolution."""
    operation = operations[number]
    n, i, h, w = operations[operation.inputs[0]].shape
    return Geometry(n, h, w, i, operation.shape[1], *operation.settings)


class Convolution:
    """A convolution in a program by oneDNN, or by own loops and matrix products.

    Args:
        records: where it is written.
        geometry: its sizes.
        parameters: weight, and bias if the geometry has one.
        gradients: where those of the parameters are written, which may be empty where `backward` is
            not called.
        bfloat16: whether inputs, weights and gradients are rounded to bfloat16 and their products
            summed in float32, unless the convolution is depthwise or grouped.
    """

    def __init__(
        self,
        records: Records,
        geometry: Geometry,
        parameters: Sequence[Place],
        gradients: Sequence[Place],
        bfloat16: bool = False,
    ):
        self._records, self._parameters, self._gradients = records, parameters, gradients
        # several outputs of each channel: a depthwise convolution of as many copies of it
        self._copies = geometry.o // geometry.i if 1 < geometry.groups == geometry.i else 1
        if self._copies > 1:
            geometry = geometry._replace(i=geometry.o, groups=geometry.o)
        self._geometry = geometry
        self._primitives = ConvolutionPrimitives(geometry, bfloat16 and geometry.groups == 1)
        self._x = Buffer(0)

    def forward(self, x: Buffer, y: Buffer) -> None:
        """Compute y from x, which the gradient of the weight needs too."""
        if self._copies > 1:
            x, single = Buffer(x.size * self._copies), x
            self._records.emit(Code.REPEAT, single, *self._single, self._copies, x)
        self._x = x
        primitives = self._primitives
        if primitives.by_own_loops(primitives.forward):
            self._records.emit(Code.DEPTHWISE, x, self._taps(), *self._geometry.sizes, y)
            return
        weight = self._reordered(primitives.to_forward, primitives.forward)
        places = {onednn.SRC: self._rounded(x), onednn.WEIGHTS: weight, onednn.DST: y}
        if self._geometry.bias:
            places[onednn.BIAS] = self._parameters[1]
        self._records.execute(primitives.forward, places)

    def backward(self, gradient: Buffer, target: Buffer | None) -> None:
        """Compute the gradients of the parameters, and in `target`, if given, that of the input."""
        self._weight_gradient(gradient)
        if target is None:
            return
        primitives = self._primitives
        copies = Buffer(self._x.size) if self._copies > 1 else target
        if primitives.by_own_loops(primitives.backward_data):
            sizes = self._geometry.sizes
            self._records.emit(Code.DEPTHWISE_DATA, gradient, self._taps(), *sizes, copies)
        else:
            weight = self._reordered(primitives.to_backward, primitives.backward_data)
            places = {onednn.DIFF_DST: self._rounded(gradient), onednn.WEIGHTS: weight}
            self._records.execute(primitives.backward_data, {**places, onednn.DIFF_SRC: copies})
        if copies is not target:
            self._records.emit(Code.REPEAT_GRADIENT, copies, *self._single, self._copies, target)

    @property
    def _single(self) -> tuple[int, int]:
        """Rows and channels of the input before it is copied."""
        g = self._geometry
        return g.n * g.h * g.w, g.i // self._copies

    def _rounded(self, values: Buffer) -> Buffer:
        """Return values as the primitives take them."""
        return self._records.rounded(values) if self._primitives.bfloat16 else values

    def _reordered(self, reorder: onednn.Primitive | None, primitive: onednn.Primitive) -> Place:
        """Return the weight in the primitive's layout."""
        weight = self._parameters[0]
        if reorder is None:
            return weight
        target = Buffer(-(-primitive.memory[onednn.WEIGHTS].size // 4))
        self._records.execute(reorder, {onednn.SRC: weight, onednn.DST: target})
        return target

    def _taps(self) -> Buffer:
        """Return the weight of a depthwise convolution as [kernel, kernel, channels]."""
        g = self._geometry
        target = Buffer(g.o * g.kernel**2)
        self._records.transpose(self._parameters[0], target, 1, g.o, g.kernel**2)
        return target

    def _weight_gradient(self, gradient: Buffer) -> None:
        primitives, g = self._primitives, self._geometry
        target, *biases = self._gradients
        primitive, reorder = primitives.backward_weights, primitives.from_backward
        if primitives.by_own_loops(primitive):
            result = Buffer(g.o * g.kernel**2)
            self._records.emit(Code.DEPTHWISE_WEIGHTS, self._x, gradient, *g.sizes, result)
            self._records.transpose(result, target, 1, g.kernel**2, g.o)
            return
        if primitives.weights_by_product:
            self._weight_product(gradient, target)
            if g.bias:
                self._records.emit(Code.SUM_ROWS, gradient, gradient.size // g.o, g.o, *biases)
            return
        weights = target
        if reorder is not None:
            weights = Buffer(primitive.memory[onednn.DIFF_WEIGHTS].size // 4)
        x, gradient = self._rounded(self._x), self._rounded(gradient)
        places = {onednn.SRC: x, onednn.DIFF_DST: gradient, onednn.DIFF_WEIGHTS: weights}
        if g.bias:
            places[onednn.DIFF_BIAS] = biases[0]
        self._records.execute(primitive, places)
        if reorder is not None:
            self._records.execute(reorder, {onednn.SRC: weights, onednn.DST: target})

    def _weight_product(self, gradient: Buffer, target: Place) -> None:
        """Compute the gradient of the weight as gradient^T patches."""
        g = self._geometry
        n, oh, ow, o = g.output
        rows, taps = n * oh * ow, g.kernel**2
        patches, result = self._x, target
        if taps > 1 or g.stride > 1 or g.padding > 0:
            patches = Buffer(rows * taps * g.i)
            self._records.emit(Code.PATCHES, self._x, *g.sizes, patches)
        if taps > 1:
            result = Buffer(o * taps * g.i)
        kind = self._primitives.kind
        product = onednn.products(1, o, rows, taps * g.i, transposed="source", kind=kind)
        self._records.multiply(product, self._rounded(gradient), self._rounded(patches), result)
        if taps > 1:
            self._records.transpose(result, target, o, taps, g.i)
