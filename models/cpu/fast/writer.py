"""What a traced network computes, written down as the records that a program runs."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from ..symbol import Operation
from . import map_kernels, onednn
from .executor import Code
from .fuse import Unit, fuse
from .places import Addresses, Argument, Buffer, Part, Place
from .slots import Slots

_ACTIVATIONS = {
    "relu": map_kernels.RELU,
    "sigmoid": map_kernels.SIGMOID,
    "hard_sigmoid": map_kernels.HARD_SIGMOID,
    "gelu": map_kernels.GELU,
    "negative": map_kernels.NEGATIVE,
}


class Writer:
    """Writes the records of the forward and of the backward pass.

    Args:
        operations, outputs: those of a trace, and the numbers of its results.
        input_gradient: whether the gradient of the input is computed.

    Attributes:
        records: code, arguments, and all whose memory is used, of each record.
        split: number of the records of the forward pass, which are the first.
        slots: numbers of what is outside.
        scratch: memory that oneDNN uses within a record.
        kept: objects of oneDNN, which the records have the addresses of.
    """

    def __init__(self, operations: list[Operation], outputs: list[int], input_gradient: bool):
        self._operations, self._outputs = operations, outputs
        self._input_gradient = input_gradient
        self.records: list[tuple[Code, tuple[Argument, ...], tuple[Argument, ...]]] = []
        self.slots = Slots(operations, outputs)
        self.scratch = Buffer(0)
        self.kept: list[object] = []
        self._values: dict[int, Buffer] = {}
        self._gradients: dict[int, list[Buffer]] = {}
        self._saved: dict[int, tuple] = {}
        fused = fuse(operations, outputs)
        self._emit_input()
        for item in fused:
            self._forward(item)
        self._emit_outputs()
        self.split = len(self.records)
        self._emit_output_gradients()
        for item in reversed(fused):
            self._backward(item)
        if input_gradient:
            self._emit_input_gradient()

    def _emit(self, code: Code, *arguments: Argument, uses: Sequence[Argument] = ()) -> None:
        """Append a record, which uses the memory of its arguments and of `uses`."""
        self.records.append((code, arguments, (*arguments, *uses)))

    def _execute_primitive(self, primitive: onednn.Primitive, places: dict[int, Place]) -> None:
        """Emit a computation of oneDNN on these places."""
        self.kept.append(primitive)
        scratch = primitive.memory[onednn.SCRATCHPAD]
        self.scratch.size = max(self.scratch.size, scratch.size // 4)
        places = {**places, onednn.SCRATCHPAD: self.scratch}
        for argument, place in places.items():
            self._emit(Code.HANDLE, primitive.memory[argument].handle, place)
        arguments = primitive.handle, primitive.count, primitive.arguments
        self._emit(Code.EXECUTE, *arguments, uses=tuple(places.values()))

    def _shape(self, number: int) -> tuple[int, int, int]:
        """Return images, positions and channels of a result."""
        n, c, h, w = self._operations[number].shape
        return n, h * w, c

    def _new(self, number: int) -> Buffer:
        """Return a buffer of the size of a result."""
        return Buffer(prod(self._operations[number].shape))

    def _emit_input(self) -> None:
        images, positions, channels = self._shape(0)
        self._values[0] = self._new(0)
        self._emit(
            Code.TRANSPOSE, self.slots.of("input"), self._values[0], images, channels, positions
        )

    def _emit_outputs(self) -> None:
        for i, number in enumerate(self._outputs):
            images, positions, channels = self._shape(number)
            target = self.slots.of("outputs", i)
            self._emit(Code.TRANSPOSE, self._values[number], target, images, positions, channels)

    def _emit_output_gradients(self) -> None:
        for i, number in enumerate(self._outputs):
            images, positions, channels = self._shape(number)
            gradient = self._contribution(number)
            source = self.slots.of("output_gradients", i)
            self._emit(Code.TRANSPOSE, source, gradient, images, channels, positions)

    def _emit_input_gradient(self) -> None:
        images, positions, channels = self._shape(0)
        target = self.slots.of("input_gradient")
        self._emit(Code.TRANSPOSE, self._gradient(0), target, images, positions, channels)

    def _contribution(self, number: int) -> Buffer:
        """Return a new buffer for a part of the gradient of a result."""
        buffer = self._new(number)
        self._gradients.setdefault(number, []).append(buffer)
        return buffer

    def _gradient(self, number: int) -> Buffer:
        """Return the gradient of a result, the sum of its parts."""
        parts = self._gradients.pop(number)
        if len(parts) == 1:
            return parts[0]
        total = self._new(number)
        self._emit(Code.ADD, Addresses(parts), len(parts), total.size, total)
        return total

    def _forward(self, item: int | Unit) -> None:
        if isinstance(item, Unit):
            self._unit(item)
            return
        operation = self._operations[item]
        images, positions, channels = self._shape(item)
        target = self._values[item] = self._new(item)
        inputs = [self._values[number] for number in operation.inputs]
        if operation.kind == "convolution":
            self._convolution(item, operation, inputs[0], target)
        elif operation.kind == "sum":
            self._emit(Code.ADD, Addresses(inputs), 2, target.size, target)
        elif operation.kind == "pool":
            images, positions, channels = self._shape(operation.inputs[0])
            self._emit(Code.POOL, *inputs, images, positions, channels, target)
        elif operation.kind == "scale":
            self._emit(Code.SCALE, *inputs, images, positions, channels, target)
        elif operation.kind == "factors":
            parameter = self.slots.of("parameters", self.slots.first_parameter[item])
            self._emit(Code.BROADCAST, parameter, images, channels, target)
        else:
            kind = _ACTIVATIONS[operation.kind]
            self._emit(Code.ACTIVATE, kind, *inputs, target.size, target)

    def _backward(self, item: int | Unit) -> None:
        if isinstance(item, Unit):
            self._unit_gradient(item)
            return
        operation = self._operations[item]
        images, positions, channels = self._shape(item)
        gradient = self._gradient(item)
        inputs = [self._values[number] for number in operation.inputs]
        if operation.kind == "convolution":
            self._convolution_gradient(item, operation, gradient)
        elif operation.kind == "sum":
            for number in operation.inputs:
                self._gradients.setdefault(number, []).append(gradient)
        elif operation.kind == "pool":
            images, positions, channels = self._shape(operation.inputs[0])
            target = self._contribution(operation.inputs[0])
            self._emit(Code.POOL_GRADIENT, gradient, images, positions, channels, target)
        elif operation.kind == "scale":
            targets = [self._contribution(number) for number in operation.inputs]
            self._emit(
                Code.SCALE_GRADIENT, gradient, *inputs, images, positions, channels, *targets
            )
        elif operation.kind == "factors":
            parameter = self.slots.of("parameter_gradients", self.slots.first_parameter[item])
            self._emit(Code.SUM_ROWS, gradient, images, channels, parameter)
        else:
            target = self._contribution(operation.inputs[0])
            kind, output = _ACTIVATIONS[operation.kind], self._values[item]
            self._emit(
                Code.ACTIVATION_GRADIENT, kind, *inputs, output, gradient, target.size, target
            )

    # ------------------------------------------------------------ convolutions

    def _convolution(self, number: int, operation: Operation, x: Buffer, y: Buffer) -> None:
        n, i, h, w = self._operations[operation.inputs[0]].shape
        kernel, stride, padding, groups, has_bias = operation.settings
        o = operation.shape[1]
        if groups == i < o:  # several outputs of each channel: depthwise on as many copies of it
            x, single = Buffer(n * h * w * o), x
            self._emit(Code.REPEAT, single, n * h * w, i, o // i, x)
            i = groups = o
        convolution = onednn.Convolution(
            onednn.Geometry(n, h, w, i, o, kernel, stride, padding, groups, has_bias)
        )
        self._saved[number] = convolution, x
        if convolution.is_slow(convolution.forward):
            weight = self._taps(number, convolution.geometry)
            self._emit(Code.DEPTHWISE, x, weight, *convolution.geometry.sizes, y)
            return
        ordered = self._reordered(number, convolution.to_forward, convolution.forward)
        bias = self.slots.of("parameters", self.slots.first_parameter[number] + 1)
        self._execute_primitive(
            convolution.forward,
            {
                onednn.SRC: x,
                onednn.WEIGHTS: ordered,
                onednn.DST: y,
                **({onednn.BIAS: bias} if has_bias else {}),
            },
        )

    def _reordered(
        self, number: int, reorder: onednn.Primitive | None, primitive: onednn.Primitive
    ) -> Place:
        """Return the weight in the primitive's layout."""
        weight = self.slots.of("parameters", self.slots.first_parameter[number])
        if reorder is None:
            return weight
        target = Buffer(primitive.memory[onednn.WEIGHTS].size // 4)
        self._execute_primitive(reorder, {onednn.SRC: weight, onednn.DST: target})
        return target

    def _taps(self, number: int, geometry: onednn.Geometry) -> Buffer:
        """Return the weight of a depthwise convolution as [kernel, kernel, channels]."""
        weight = self.slots.of("parameters", self.slots.first_parameter[number])
        taps = geometry.kernel**2
        target = Buffer(geometry.o * taps)
        self._emit(Code.TRANSPOSE, weight, target, 1, geometry.o, taps)
        return target

    def _convolution_gradient(self, number: int, operation: Operation, gradient: Buffer) -> None:
        convolution, x = self._saved.pop(number)
        geometry, source = convolution.geometry, operation.inputs[0]
        self._weight_gradient(number, convolution, x, gradient)
        if not self._needs_gradient(source):
            return
        n, i, h, w = self._operations[source].shape
        target = self._contribution(source)
        repeated = Buffer(x.size) if geometry.i > i else target
        if convolution.is_slow(convolution.backward_data):
            weight = self._taps(number, geometry)
            self._emit(Code.DEPTHWISE_DATA, gradient, weight, *geometry.sizes, repeated)
        else:
            ordered = self._reordered(number, convolution.to_backward, convolution.backward_data)
            self._execute_primitive(
                convolution.backward_data,
                {onednn.DIFF_DST: gradient, onednn.WEIGHTS: ordered, onednn.DIFF_SRC: repeated},
            )
        if repeated is not target:
            self._emit(Code.REPEAT_GRADIENT, repeated, n * h * w, i, geometry.i // i, target)

    def _weight_gradient(
        self, number: int, convolution: onednn.Convolution, x: Buffer, gradient: Buffer
    ) -> None:
        geometry, first = convolution.geometry, self.slots.first_parameter[number]
        target: Place = self.slots.of("parameter_gradients", first)
        primitive, reorder = convolution.backward_weights, convolution.from_backward
        if convolution.is_slow(primitive):
            taps = geometry.kernel**2
            result = Buffer(geometry.o * taps)
            self._emit(Code.DEPTHWISE_WEIGHTS, x, gradient, *geometry.sizes, result)
            self._emit(Code.TRANSPOSE, result, target, 1, taps, geometry.o)
            return
        bias = self.slots.of("parameter_gradients", first + 1)
        if convolution.weights_by_product:
            self._weight_product(geometry, x, gradient, target)
            if geometry.bias:
                rows = gradient.size // geometry.o
                self._emit(Code.SUM_ROWS, gradient, rows, geometry.o, bias)
            return
        weights = target
        if reorder is not None:
            weights = Buffer(primitive.memory[onednn.DIFF_WEIGHTS].size // 4)
        self._execute_primitive(
            primitive,
            {
                onednn.SRC: x,
                onednn.DIFF_DST: gradient,
                onednn.DIFF_WEIGHTS: weights,
                **({onednn.DIFF_BIAS: bias} if geometry.bias else {}),
            },
        )
        if reorder is not None:
            self._execute_primitive(reorder, {onednn.SRC: weights, onednn.DST: target})

    def _weight_product(
        self, geometry: onednn.Geometry, x: Buffer, gradient: Buffer, target: Place
    ) -> None:
        """Emit the gradient of the weights as gradient^T patches."""
        n, oh, ow, o = geometry.output
        rows, taps = n * oh * ow, geometry.kernel**2
        patches, result = x, target
        if taps > 1 or geometry.stride > 1:
            patches = Buffer(rows * taps * geometry.i)
            self._emit(Code.PATCHES, x, *geometry.sizes, patches)
        if taps > 1:
            result = Buffer(o * taps * geometry.i)
        product = onednn.transposed_product(rows, o, taps * geometry.i)
        self._execute_primitive(
            product, {onednn.SRC: gradient, onednn.WEIGHTS: patches, onednn.DST: result}
        )
        if taps > 1:
            self._emit(Code.TRANSPOSE, result, target, o, taps, geometry.i)

    def _needs_gradient(self, number: int) -> bool:
        return number > 0 or self._input_gradient

    # ------------------------------------------------------------ batch norms

    def _unit(self, unit: Unit) -> None:
        rows, channels = self._rows(unit.number)
        count = len(unit.normed)
        stats, table = Buffer(2 * count * channels), Buffer(3 * count * channels)
        for b, (number, norm) in enumerate(unit.normed):
            self._emit(
                Code.STATISTICS, self._values[number], rows, channels, Part(stats, 2 * b * channels)
            )
            parameter, index = self.slots.first_parameter[norm], 2 * self.slots.norm[norm]
            self._emit(
                Code.COEFFICIENTS,
                Part(stats, 2 * b * channels),
                self.slots.of("parameters", parameter),
                self.slots.of("parameters", parameter + 1),
                self.slots.of("statistics", index),
                self.slots.of("statistics", index + 1),
                self.slots.of("new_statistics", index),
                self.slots.of("new_statistics", index + 1),
                rows,
                channels,
                self.slots.of("settings", index),
                self.slots.of("settings", index + 1),
                Part(table, 3 * b * channels),
            )
        inputs = Addresses([self._values[number] for number, _ in unit.normed])
        others = Addresses([self._values[number] for number in unit.others])
        target = self._values[unit.number] = self._new(unit.number)
        self._emit(
            Code.COMBINE, inputs, count, table, others, len(unit.others), rows, channels,
            int(unit.relu), target,
        )  # fmt: skip
        self._saved[unit.number] = stats, table

    def _unit_gradient(self, unit: Unit) -> None:
        stats, table = self._saved.pop(unit.number)
        gradient, output = self._gradient(unit.number), self._values[unit.number]
        rows, channels = self._rows(unit.number)
        count = len(unit.normed)
        inputs = Addresses([self._values[number] for number, _ in unit.normed])
        sums = Buffer((1 + count) * channels)
        if not unit.relu:
            output = gradient  # it is not read
        common = (rows, channels, int(unit.relu))
        self._emit(Code.GRADIENT_SUMS, gradient, output, inputs, count, stats, table, *common, sums)
        targets = Addresses([self._contribution(number) for number, _ in unit.normed])
        self._emit(
            Code.GRADIENT_INPUTS,
            gradient, output, inputs, count, stats, table, sums, *common, targets,
        )  # fmt: skip
        for b, (_, norm) in enumerate(unit.normed):
            parameter = self.slots.first_parameter[norm]
            for offset, target in (((1 + b) * channels, parameter), (0, parameter + 1)):
                self._emit(
                    Code.COPY,
                    Part(sums, offset),
                    channels,
                    self.slots.of("parameter_gradients", target),
                )
        if unit.others and unit.relu:
            masked = Buffer(gradient.size)
            self._emit(
                Code.ACTIVATION_GRADIENT,
                map_kernels.RELU, output, output, gradient, gradient.size, masked,
            )  # fmt: skip
            gradient = masked
        for number in unit.others:
            self._gradients.setdefault(number, []).append(gradient)

    def _rows(self, number: int) -> tuple[int, int]:
        images, positions, channels = self._shape(number)
        return images * positions, channels
