"""Programs: a network's forward and backward pass as two compiled calls, with all their memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from . import executor, libraries, onednn
from .memory import aligned
from .places import Addresses, Argument, Buffer, Part, Slot, arrange, buffers_of
from .records import Record, Records


class Program:
    """What records compute: for a network, its forward and backward pass for batches of one shape.

    The maps of the forward pass stay in the program's memory until the backward pass, so between
    them the program can be used for nothing else. Without a backward pass, maps take the memory of
    those that are no longer needed.

    Args:
        records: those of both passes; they are for one program.
        ranges: what is outside -> its slots.
        split: number of the records of the forward pass; without it there is no backward pass.
    """

    def __init__(self, records: Records, ranges: Mapping[str, slice], split: int | None = None):
        self._ranges, self._kept = ranges, records.kept
        self._slots = np.zeros(max(numbers.stop for numbers in ranges.values()), np.int64)
        self._place(records.rows)
        encoded = np.zeros((len(records.rows), executor.WIDTH), np.int64)
        for row, record in zip(encoded, records.rows, strict=True):
            row[0] = record.code
            values = [self._value(argument) for argument in record.arguments]
            row[1 : 1 + len(values)] = values
        split = len(encoded) if split is None else split
        self._forward, self._backward = encoded[:split], encoded[split:]
        self._execute = onednn.address("dnnl_primitive_execute")
        self._set_handle = onednn.address("dnnl_memory_set_data_handle")

    def set(self, name: str, values: Sequence[int] | np.ndarray) -> None:
        """Give the addresses, or the bits, of what has this name outside."""
        self._slots[self._ranges[name]] = values

    def forward(self) -> None:
        """Run the records of the forward pass. Raises onednn.Error."""
        self._run(self._forward)

    def backward(self) -> None:
        """Run the records of the backward pass. Raises onednn.Error."""
        self._run(self._backward)

    def _run(self, records: np.ndarray) -> None:
        libraries.set_threads()
        stream = onednn.stream()
        if executor.run(records, self._slots, self._execute, self._set_handle, stream):
            raise onednn.Error("oneDNN could not compute a record of a program")

    def _place(self, rows: Sequence[Record]) -> None:
        """Give every buffer its address in a new arena."""
        buffers: dict[Buffer, None] = {}
        for position, record in enumerate(rows):
            for buffer in buffers_of(record.uses):
                if buffer not in buffers:
                    buffers[buffer] = None
                    buffer.first = position
                buffer.last = position
        size = arrange(list(buffers))
        self._arena, start = aligned(size, 4096)
        for buffer in buffers:
            buffer.address = start + 4 * buffer.offset

    def _value(self, argument: Argument) -> int:
        if isinstance(argument, Slot):
            return -argument.number - 1
        if isinstance(argument, Buffer):
            return argument.address
        if isinstance(argument, Part):
            return argument.buffer.address + 4 * argument.offset
        if isinstance(argument, Addresses):
            argument.values[: len(argument.of)] = [buffer.address for buffer in argument.of]
            self._kept.append(argument)
            return argument.values.ctypes.data
        return argument
