"""Numbers of the memory that is outside of a program, whose addresses are others in every step."""

from __future__ import annotations

from ..symbol import Operation
from .places import Slot


class Slots:
    """Slots of a program, numbered by what they are of.

    Args:
        operations: those of a trace.
        input_gradient: whether the gradient of the input is computed.

    Attributes:
        ranges: what is outside -> its slots. "settings" are no addresses, but eps and momentum of
            the batch norms.
        count: number of all slots.
        first_parameter: operation -> index of its first one among the parameters.
        norm: operation -> index of it among the batch norms.
    """

    def __init__(self, operations: list[Operation], input_gradient: bool):
        parameters = norms = 0
        self.first_parameter: dict[int, int] = {}
        self.norm: dict[int, int] = {}
        for number, operation in enumerate(operations):
            self.first_parameter[number] = parameters
            if operation.kind == "convolution":
                parameters += 1 + operation.settings[-1]
            elif operation.kind == "factors":
                parameters += 1
            elif operation.kind == "norm":
                parameters += 2
                self.norm[number] = norms
                norms += 1
        counts = {
            "input": 1,
            "parameters": parameters,
            "statistics": 2 * norms,
            "settings": 2 * norms,
            "output": 1,
            "new_statistics": 2 * norms,
            "output_gradient": 1,
            "input_gradient": int(input_gradient),
            "parameter_gradients": parameters,
        }
        self.ranges: dict[str, slice] = {}
        self.count = 0
        for name, count in counts.items():
            self.ranges[name] = slice(self.count, self.count + count)
            self.count += count

    def of(self, name: str, index: int = 0) -> Slot:
        """Return one of the slots of what is outside."""
        return Slot(self.ranges[name].start + index)
