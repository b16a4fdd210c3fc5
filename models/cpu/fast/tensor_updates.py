"""New values of many tensors in one compiled pass, in memory that is not the old one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from weakref import WeakKeyDictionary

import megengine as mge
import numpy as np

from . import libraries, memory

_STEP = 16384  # floats of a chunk

# owner -> shapes of the tensors and how many of each are written -> memory, chunks of a pass
_prepared: WeakKeyDictionary[object, dict[tuple, tuple[memory.Pool, np.ndarray]]] = (
    WeakKeyDictionary()
)


def _prepare(
    owner: object, shapes: tuple[tuple[int, ...], ...], written: int
) -> tuple[memory.Pool, np.ndarray]:
    prepared = _prepared.setdefault(owner, {})
    if (shapes, written) not in prepared:
        chunks = [
            (tensor, first, min(_STEP, prod(shape) - first))
            for tensor, shape in enumerate(shapes)
            for first in range(0, prod(shape), _STEP)
        ]
        prepared[shapes, written] = memory.Pool([*shapes] * written), np.array(chunks, np.int64)
    return prepared[shapes, written]


def update(
    owner: object,
    written: Sequence[Sequence[mge.Tensor]],
    read: Sequence[Sequence[mge.Tensor]],
    loop: Callable[[np.ndarray, np.ndarray], None],
) -> None:
    """Give new values to float32 tensors; what was read from them before stays as it was.

    Args:
        owner: for which memory is kept as long as it lives.
        written: lists of tensors, whose nth ones all have the same shape.
        read: such lists of what else is needed.
        loop: called as loop(addresses, chunks). `addresses` [lists, tensors] has a row for each
            list of `written`, then of `read`, then of the new values of `written`. Each row of
            `chunks` [chunks, 3] is the index of its tensors, the first float and their number.
    """
    shapes = tuple(tuple(tensor.shape) for tensor in written[0])
    pool, chunks = _prepare(owner, shapes, len(written))
    addresses, owners = memory.addresses_of([t for tensors in (*written, *read) for t in tensors])
    memory.settle()
    libraries.set_threads()
    block = pool.take()
    table = np.concatenate([np.array(addresses, np.int64), block.addresses])
    loop(table.reshape(-1, len(shapes)), chunks)
    del owners
    old = [tensor for tensors in written for tensor in tensors]
    for tensor, new in zip(old, block.tensors(), strict=True):
        tensor._reset(new)
