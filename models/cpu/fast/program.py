"""Programs: a network's forward and backward pass as two compiled calls, with all their memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import executor, libraries, onednn
from .memory import aligned
from .places import Addresses, Argument, Buffer, Part, Slot, arrange, buffers_of
from .writer import Writer


class Program:
    """What a network computes for batches of one shape, forward and backward.

    The maps of the forward pass stay in the program's memory until the backward pass, so between
    them the program can be used for nothing else. Without a backward pass, maps take the memory of
    those that are no longer needed.

    Args:
        written: records of the network; a writer is for one program.
    """

    def __init__(self, written: Writer):
        self._ranges = written.slots.ranges
        self._slots = np.zeros(written.slots.count, np.int64)
        self._kept = written.records.kept
        self._place(written)
        encoded = np.zeros((len(written.records.rows), executor.WIDTH), np.int64)
        for row, record in zip(encoded, written.records.rows, strict=True):
            row[0] = record.code
            values = [self._value(argument) for argument in record.arguments]
            row[1 : 1 + len(values)] = values
        self._forward, self._backward = encoded[: written.split], encoded[written.split :]
        self._execute = onednn.address("dnnl_primitive_execute")
        self._set_handle = onednn.address("dnnl_memory_set_data_handle")

    def set(self, name: str, values: Sequence[int] | np.ndarray) -> None:
        """Give the addresses, or the bits, of what `Slots.ranges` has under this name."""
        self._slots[self._ranges[name]] = values

    def forward(self) -> None:
        """Compute the output and the new running statistics. Raises onednn.Error."""
        self._run(self._forward)

    def backward(self) -> None:
        """Compute the gradients. Raises onednn.Error."""
        self._run(self._backward)

    def _run(self, records: np.ndarray) -> None:
        libraries.set_threads()
        stream = onednn.stream()
        if executor.run(records, self._slots, self._execute, self._set_handle, stream):
            raise onednn.Error("oneDNN could not compute a record of a program")

    def _place(self, written: Writer) -> None:
        """Give every buffer its address in a new arena."""
        buffers: dict[Buffer, None] = {}
        for position, record in enumerate(written.records.rows):
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
