"""The records that a program runs, as they are before memory has addresses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from . import onednn
from .executor import Code
from .places import Argument, Buffer, Place


class Record(NamedTuple):
    """An instruction, its arguments, and all whose memory it uses."""

    code: Code
    arguments: tuple[Argument, ...]
    uses: tuple[Argument, ...]


class Records:
    """Instructions in their order.

    Attributes:
        rows: the records.
        scratch: memory that oneDNN uses within a record.
        kept: objects whose memory the records have the addresses of, such as those of oneDNN.
    """

    def __init__(self) -> None:
        self.rows: list[Record] = []
        self.scratch = Buffer(0)
        self.kept: list[object] = []
        self._rounded: dict[Buffer, Buffer] = {}

    def emit(self, code: Code, *arguments: Argument, uses: Sequence[Argument] = ()) -> None:
        """Append a record, which uses the memory of its arguments and of `uses`."""
        self.rows.append(Record(code, arguments, (*arguments, *uses)))

    def execute(self, primitive: onednn.Primitive, places: Mapping[int, Argument]) -> None:
        """Append a computation of oneDNN on these places."""
        self.kept.append(primitive)
        scratch = primitive.memory[onednn.SCRATCHPAD]
        self.scratch.size = max(self.scratch.size, -(-scratch.size // 4))
        all_places = {**places, onednn.SCRATCHPAD: self.scratch}
        for argument, place in all_places.items():
            self.emit(Code.HANDLE, primitive.memory[argument].handle, place)
        arguments = primitive.handle, len(primitive.memory), primitive.arguments
        self.emit(Code.EXECUTE, *arguments, uses=tuple(all_places.values()))

    def rounded(self, source: Buffer) -> Buffer:
        """Return a copy in bfloat16 of a buffer, made once: the buffer must not change any more."""
        if source not in self._rounded:
            target = self._rounded[source] = Buffer(-(-source.size // 2))
            primitive = onednn.rounding(source.size)
            self.execute(primitive, {onednn.SRC: source, onednn.DST: target})
        return self._rounded[source]

    def multiply(
        self, product: onednn.Primitive, source: Argument, weights: Argument, target: Place
    ) -> None:
        """Append a product of matrices, one of `onednn.products`."""
        self.execute(product, {onednn.SRC: source, onednn.WEIGHTS: weights, onednn.DST: target})

    def transpose(self, source: Place, target: Place, count: int, rows: int, columns: int) -> None:
        """Append a transposition of [count, rows, columns] to [count, columns, rows]."""
        places = {onednn.SRC: source, onednn.DST: target}
        self.execute(onednn.transposition(count, rows, columns), places)
