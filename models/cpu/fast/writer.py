"""What a traced network computes, written down as the records that a program runs."""

from __future__ import annotations

from math import prod

from ..symbol import Operation
from . import libraries, onednn, onednn_layers
from .convolution import Convolution, convolution_of
from .executor import Code
from .fuse import NormSum, fuse
from .merged_sum import MergedSumRecords
from .merging import MergedSum, merge
from .norm_sum import NormSumRecords
from .places import Addresses, Buffer, Place
from .records import Records
from .slots import Slots
from .winograd import WinogradConvolution


class Writer:
    """Writes the records of the forward and of the backward pass.

    Args:
        operations: those of a trace; the result of the last one is the output.
        input_gradient: whether the gradient of the input is computed.
        backward: whether there is a backward pass.
        bfloat16: whether dense convolutions are rounded to bfloat16.

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
        bfloat16: bool = False,
    ):
        libraries.set_threads()  # oneDNN divides its work when something is created
        self._operations = operations
        self._input_gradient, self._bfloat16 = input_gradient, bfloat16
        self.slots = Slots(operations, input_gradient)
        self.records = Records()
        self._emit = self.records.emit
        self._convolutions: dict[int, Convolution | WinogradConvolution] = {}
        self._activations: dict[int, onednn_layers.Activation] = {}
        self._values: dict[int, Buffer] = {}
        self._gradients: dict[int, list[Buffer]] = {}
        self._sums: dict[int, NormSumRecords] = {}
        self._merged: dict[int, MergedSumRecords] = {}
        fused = merge(operations, fuse(operations))
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

    def _forward(self, item: int | NormSum | MergedSum) -> None:
        if isinstance(item, NormSum):
            self._norm_sum(item)
            return
        if isinstance(item, MergedSum):
            self._merged_sum(item)
            return
        operation = self._operations[item]
        images, positions, channels = self._shape(item)
        target = self._values[item] = self._new(item)
        inputs = [self._values[number] for number in operation.inputs]
        if operation.kind == "convolution":
            convolution = convolution_of(
                self.records, self.slots, self._operations, item, self._bfloat16
            )
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

    def _backward(self, item: int | NormSum | MergedSum) -> None:
        if isinstance(item, NormSum):
            self._norm_sum_gradient(item)
            return
        if isinstance(item, MergedSum):
            self._merged_sum_gradient(item)
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
            activation = self._activations.pop(item)
            self._activation_gradient(activation, inputs[0], gradient, target)

    def _activation_gradient(
        self, activation: onednn_layers.Activation, source: Buffer, gradient: Buffer, target: Buffer
    ) -> None:
        places = {onednn.SRC: source, onednn.DIFF_DST: gradient, onednn.DIFF_SRC: target}
        self.records.execute(activation.backward, places)

    def _norm_sum(self, item: NormSum) -> None:
        images, positions, channels = self._shape(item.number)
        records = self._sums[item.number] = NormSumRecords(
            self.records, self.slots, item, images * positions, channels
        )
        inputs = [self._values[number] for number, _ in item.normed]
        others = [self._values[number] for number in item.others]
        target = self._values[item.number] = self._new(item.number)
        records.forward(inputs, others, target)

    def _norm_sum_gradient(self, item: NormSum) -> None:
        gradient = self._gradient(item.number)
        targets = [self._contribution(number) for number, _ in item.normed]
        self._sums.pop(item.number).backward(gradient, targets)
        self._gradient_of_others(item, gradient)

    def _merged_sum(self, item: MergedSum) -> None:
        records = self._merged[item.number] = MergedSumRecords(
            self.records, self.slots, item, self._bfloat16
        )
        others = [self._values[number] for number in item.others]
        target = self._values[item.number] = self._new(item.number)
        records.forward(self._values[item.source], others, target)

    def _merged_sum_gradient(self, item: MergedSum) -> None:
        gradient, targets = self._gradient(item.number), None
        if item.source > 0 or self._input_gradient:
            targets = self._contribution(item.source), self._contribution(item.source)
        self._merged.pop(item.number).backward(gradient, targets)
        self._gradient_of_others(item, gradient)

    def _gradient_of_others(self, item: NormSum | MergedSum, gradient: Buffer) -> None:
        if item.others and item.relu:
            masked, relu = Buffer(gradient.size), onednn_layers.Activation("relu", gradient.size)
            output = self._values[item.number]  # above 0 where the input of the ReLU is
            self._activation_gradient(relu, output, gradient, masked)
            gradient = masked
        for number in item.others:
            self._gradients.setdefault(number, []).append(gradient)
