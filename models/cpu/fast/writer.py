"""What a traced network computes, written down as the records that a program runs."""

from __future__ import annotations

from math import prod

from ..symbol import Operation
from . import libraries, onednn, onednn_layers
from .convolution import Convolution, convolution_of
from .executor import Code
from .fuse import NormSum, fuse
from .places import Addresses, Buffer, Part, Place
from .records import Records
from .slots import Slots
from .winograd import WinogradConvolution


class Writer:
    """Writes the records of the forward and of the backward pass.

    Args:
        operations: those of a trace; the result of the last one is the output.
        input_gradient: whether the gradient of the input is computed.
        backward: whether there is a backward pass.

    Attributes:
        records: those of both passes.
        split: number of the records of the forward pass, which are the first.
        slots: numbers of what is outside.
    """

    def __init__(
        self,
        operations: list[Operation],
        input_gradient: bool,
        backward: bool = True,
    ):
        libraries.set_threads()  # oneDNN divides its work when something is created
        self._operations = operations
        self._input_gradient = input_gradient
        self.slots = Slots(operations, input_gradient)
        self.records = Records()
        self._emit = self.records.emit
        self._convolutions: dict[int, Convolution | WinogradConvolution] = {}
        self._activations: dict[int, onednn_layers.Activation] = {}
        self._values: dict[int, Buffer] = {}
        self._gradients: dict[int, list[Buffer]] = {}
        self._saved: dict[int, tuple] = {}
        fused = fuse(operations)
        self._emit_input()
        for item in fused:
            self._forward(item)
        self._emit_output()
        self.split = len(self.records.rows)
        if not backward:
            return
        self._emit_output_gradient()
        for item in reversed(fused):
            self._backward(item)
        if input_gradient:
            self._emit_input_gradient()

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
        source = self.slots.of("input")
        self.records.transpose(source, self._values[0], images, channels, positions)

    def _emit_output(self) -> None:
        last = len(self._operations) - 1
        images, positions, channels = self._shape(last)
        target = self.slots.of("output")
        self.records.transpose(self._values[last], target, images, positions, channels)

    def _emit_output_gradient(self) -> None:
        last = len(self._operations) - 1
        images, positions, channels = self._shape(last)
        source, gradient = self.slots.of("output_gradient"), self._contribution(last)
        self.records.transpose(source, gradient, images, channels, positions)

    def _emit_input_gradient(self) -> None:
        images, positions, channels = self._shape(0)
        target = self.slots.of("input_gradient")
        self.records.transpose(self._gradient(0), target, images, positions, channels)

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

    def _forward(self, item: int | NormSum) -> None:
        if isinstance(item, NormSum):
            self._norm_sum(item)
            return
        operation = self._operations[item]
        images, positions, channels = self._shape(item)
        target = self._values[item] = self._new(item)
        inputs = [self._values[number] for number in operation.inputs]
        if operation.kind == "convolution":
            first = self.slots.first_parameter[item]
            source = self._operations[operation.inputs[0]]
            convolution = convolution_of(self.records, self.slots, first, source.shape, operation)
            convolution.forward(inputs[0], target)
            self._convolutions[item] = convolution
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
            activation = self._activations[item] = onednn_layers.Activation(
                operation.kind, target.size
            )
            places: dict[int, Place] = {onednn.SRC: inputs[0], onednn.DST: target}
            self.records.execute(activation.forward, places)

    def _backward(self, item: int | NormSum) -> None:
        if isinstance(item, NormSum):
            self._norm_sum_gradient(item)
            return
        operation = self._operations[item]
        images, positions, channels = self._shape(item)
        gradient = self._gradient(item)
        inputs = [self._values[number] for number in operation.inputs]
        if operation.kind == "convolution":
            source = operation.inputs[0]
            needed = source > 0 or self._input_gradient
            target = self._contribution(source) if needed else None
            self._convolutions.pop(item).backward(gradient, target)
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
            self._activation_gradient(self._activations.pop(item), inputs[0], gradient, target)

    def _activation_gradient(
        self, activation: onednn_layers.Activation, source: Buffer, gradient: Buffer, target: Buffer
    ) -> None:
        self.records.execute(
            activation.backward,
            {onednn.SRC: source, onednn.DIFF_DST: gradient, onednn.DIFF_SRC: target},
        )

    def _norm_sum(self, item: NormSum) -> None:
        rows, channels = self._rows(item.number)
        count = len(item.normed)
        stats, table = Buffer(2 * count * channels), Buffer(3 * count * channels)
        for b, (number, norm) in enumerate(item.normed):
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
        inputs = Addresses([self._values[number] for number, _ in item.normed])
        others = Addresses([self._values[number] for number in item.others])
        target = self._values[item.number] = self._new(item.number)
        self._emit(
            Code.COMBINE, inputs, count, table, others, len(item.others), rows, channels,
            int(item.relu), target,
        )  # fmt: skip
        self._saved[item.number] = stats, table

    def _norm_sum_gradient(self, item: NormSum) -> None:
        stats, table = self._saved.pop(item.number)
        gradient, output = self._gradient(item.number), self._values[item.number]
        rows, channels = self._rows(item.number)
        count = len(item.normed)
        inputs = Addresses([self._values[number] for number, _ in item.normed])
        sums = Buffer((1 + count) * channels)
        if not item.relu:
            output = gradient  # it is not read
        common = (rows, channels, int(item.relu))
        self._emit(Code.GRADIENT_SUMS, gradient, output, inputs, count, stats, table, *common, sums)
        targets = Addresses([self._contribution(number) for number, _ in item.normed])
        self._emit(
            Code.GRADIENT_INPUTS,
            gradient, output, inputs, count, stats, table, sums, *common, targets,
        )  # fmt: skip
        for b, (_, norm) in enumerate(item.normed):
            parameter = self.slots.first_parameter[norm]
            for offset, target in (((1 + b) * channels, parameter), (0, parameter + 1)):
                self._emit(
                    Code.COPY,
                    Part(sums, offset),
                    channels,
                    self.slots.of("parameter_gradients", target),
                )
        if item.others and item.relu:
            masked, relu = Buffer(gradient.size), onednn_layers.Activation("relu", gradient.size)
            self._activation_gradient(relu, output, gradient, masked)  # as the input is above 0
            gradient = masked
        for number in item.others:
            self._gradients.setdefault(number, []).append(gradient)

    def _rows(self, number: int) -> tuple[int, int]:
        images, positions, channels = self._shape(number)
        return images * positions, channels
