"""Where the arguments of a program's records are, and the memory that its buffers share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np


@dataclass(eq=False)
class Buffer:
    """Memory within a program, whose place is known when all records are."""

    size: int  # in floats
    offset: int = 0  # from the start of the program's memory, in floats
    address: int = 0
    first: int = -1  # positions of the records that use it, of both passes in a row
    last: int = -1


@dataclass(frozen=True)
class Part:
    """The part of a buffer from `offset` on, in floats."""

    buffer: Buffer
    offset: int


@dataclass(frozen=True)
class Slot:
    """Memory outside of the program, whose address is another one in every step."""

    number: int


@dataclass(eq=False)
class Addresses:
    """A list of addresses, itself an argument."""

    of: list[Buffer]
    values: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.values = np.zeros(max(1, len(self.of)), np.int64)


Place = Buffer | Part | Slot
Argument = int | Place | Addresses


def buffers_of(arguments: Sequence[Argument]) -> Iterator[Buffer]:
    """Yield the buffers among the arguments, also those of parts and of lists of addresses."""
    for argument in arguments:
        if isinstance(argument, Buffer):
            yield argument
        elif isinstance(argument, Part):
            yield argument.buffer
        elif isinstance(argument, Addresses):
            yield from argument.of


def arrange(buffers: list[Buffer]) -> int:
    """Give each buffer an offset, in floats, and return the size of them all.

    Buffers that are used at the same time do not overlap: the largest come first, each at the
    lowest place that is free as long as it is used.
    """
    placed: list[Buffer] = []
    total = 0
    for buffer in sorted(buffers, key=lambda b: (-b.size, b.first)):
        size = -(-buffer.size // 16) * 16
        offset = 0
        for other in placed:  # sorted by offset
            if other.first <= buffer.last and buffer.first <= other.last:
                if offset + size <= other.offset:
                    break
                offset = max(offset, other.offset + -(-other.size // 16) * 16)
        buffer.offset = offset
        placed.append(buffer)
        placed.sort(key=lambda b: b.offset)
        total = max(total, offset + size)
    return total
