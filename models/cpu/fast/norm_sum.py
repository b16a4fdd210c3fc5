"""A sum of batch norms of a traced network and its gradients, written down as records."""

from __future__ import annotations

from .executor import Code
from .fuse import NormSum
from .places import Addresses, Buffer, Part, Place
from .records import Records
from .slots import Slots


class NormSumRecords:
    """A sum of the batch norms of some maps and of other maps, by own loops.

    Args:
        records: where it is written.
        slots: slots of what is outside of the program.
        item: the sum.
        rows, channels: positions of all images, and channels of each map.
    """

    def __init__(self, records: Records, slots: Slots, item: NormSum, rows: int, channels: int):
        self._records, self._slots, self._item = records, slots, item
        self._rows, self._channels = rows, channels
        count = len(item.normed)
        self._stats, self._table = Buffer(2 * count * channels), Buffer(3 * count * channels)
        self._inputs, self._output = Addresses([]), Buffer(0)

    def forward(self, inputs: list[Buffer], others: list[Buffer], target: Buffer) -> None:
        """Compute the sum; the gradients need inputs and output too."""
        self._inputs, self._output = Addresses(inputs), target
        rows, channels = self._rows, self._channels
        for b, (source, (_, norm)) in enumerate(zip(inputs, self._item.normed, strict=True)):
            stats = Part(self._stats, 2 * b * channels)
            self._records.emit(Code.STATISTICS, source, rows, channels, stats)
            table = Part(self._table, 3 * b * channels)
            coefficients(self._records, self._slots, norm, stats, rows, channels, table)
        self._records.emit(
            Code.COMBINE, self._inputs, len(inputs), self._table, Addresses(others), len(others),
            rows, channels, int(self._item.relu), target,
        )  # fmt: skip

    def backward(self, gradient: Buffer, targets: list[Buffer]) -> None:
        """Compute the gradients of the parameters, and in `targets` those of the inputs."""
        rows, channels, count = self._rows, self._channels, len(targets)
        sums = Buffer((1 + count) * channels)
        # without a ReLU the output is not read
        output = self._output if self._item.relu else gradient
        maps = gradient, output, self._inputs, count, self._stats, self._table
        common = rows, channels, int(self._item.relu)
        self._records.emit(Code.GRADIENT_SUMS, *maps, *common, sums)
        self._records.emit(Code.GRADIENT_INPUTS, *maps, sums, *common, Addresses(targets))
        for b, (_, norm) in enumerate(self._item.normed):
            scale = Part(sums, (1 + b) * channels)
            copy_gradients(self._records, self._slots, norm, channels, scale, sums)


def coefficients(
    records: Records, slots: Slots, norm: int, stats: Part, rows: int, channels: int, table: Part
) -> None:
    """Make the coefficients of a batch norm from its statistics, and update the running ones."""
    parameter, index = slots.first_parameter[norm], 2 * slots.norm[norm]
    records.emit(
        Code.COEFFICIENTS,
        stats,
        slots.of("parameters", parameter),
        slots.of("parameters", parameter + 1),
        slots.of("statistics", index),
        slots.of("statistics", index + 1),
        slots.of("new_statistics", index),
        slots.of("new_statistics", index + 1),
        rows,
        channels,
        slots.of("settings", index),
        slots.of("settings", index + 1),
        table,
    )


def copy_gradients(
    records: Records, slots: Slots, norm: int, channels: int, scale: Place, shift: Place
) -> None:
    """Copy the gradients of a batch norm's scale and shift to where they are returned."""
    parameter = slots.first_parameter[norm]
    for offset, source in enumerate((scale, shift)):
        target = slots.of("parameter_gradients", parameter + offset)
        records.emit(Code.COPY, source, channels, target)
