"""Memory that MegEngine's tensors and compiled code share, without copies.

MegEngine takes memory by the DLPack protocol: https://dmlc.github.io/dlpack/latest. It drops a
tensor, and tells the owner so, as soon as nothing more is going to be queued on it, although what
has been queued may not have run. So a block counts as free only once MegEngine has waited for all
that was queued when its last tensor had been dropped.
"""

from __future__ import annotations

import ctypes
import struct
import threading
import weakref
from collections.abc import Iterable, Sequence
from math import prod

import numpy as np
from megengine import Tensor
from megengine.core._imperative_rt.core2 import _from_dlpack, _to_dlpack, full_sync
from numba import carray, cfunc, types

_HEADER = 192  # bytes of a tensor's description: DLManagedTensor (64), its shape (64), a flag (64)
_SHAPE, _FLAG = 64, 128
_NAME = b"dltensor"
_get_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_get_pointer.restype, _get_pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
_new_capsule = ctypes.pythonapi.PyCapsule_New
_new_capsule.restype = ctypes.py_object
_new_capsule.argtypes = [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]


@cfunc(types.void(types.CPointer(types.int64)), cache=True)
def _dropped(header):
    """Set the flag of a tensor that MegEngine drops. Compiled, as it must not wait for the GIL."""
    carray(header, (_HEADER // 8,))[_FLAG // 8] = 1


def aligned(floats: int, alignment: int = 64) -> tuple[np.ndarray, int]:
    """Return uninitialized memory, and the first aligned address in it."""
    memory = np.empty(4 * floats + alignment, np.uint8)
    return memory, -(-memory.ctypes.data // alignment) * alignment


def addresses_of(tensors: Iterable[Tensor]) -> tuple[list[int], list[object]]:
    """Return the addresses of tensors' values, which may not be computed yet, and their owners.

    The memory stays as long as the owners do: that of a view is a copy, which they alone have.
    """
    capsules = [_to_dlpack(tensor) for tensor in tensors]
    pointers = (_get_pointer(capsule, _NAME) for capsule in capsules)
    return [ctypes.c_size_t.from_address(pointer).value for pointer in pointers], capsules


class Block:
    """Memory for several float32 tensors that are made and dropped together.

    Attributes:
        addresses: address of each tensor's values, int64 [tensors].
        pool: weak reference to the pool that it is of.
    """

    def __init__(self, pool: Pool):
        shapes = pool.shapes
        self.pool = weakref.ref(pool)
        sizes = [_HEADER + -(-4 * prod(shape) // 64) * 64 for shape in shapes]
        self._memory, start = aligned(sum(sizes) // 4)
        self._headers = start + np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int64)
        self.addresses = self._headers + _HEADER
        self._flags = [ctypes.c_int64.from_address(int(header) + _FLAG) for header in self._headers]
        for header, shape in zip(self._headers.tolist(), shapes, strict=True):
            description = struct.pack(
                "<QiiiBBHQQQQQ",
                header + _HEADER, 1, 0, len(shape), 2, 32, 1, header + _SHAPE, 0, 0, 0,
                _dropped.address,
            )  # fmt: skip
            dimensions = struct.pack(f"<{len(shape)}q", *shape)
            ctypes.memmove(header, description, len(description))
            ctypes.memmove(header + _SHAPE, dimensions, len(dimensions))

    @property
    def is_dropped(self) -> bool:
        """Whether MegEngine has dropped all tensors of this block."""
        return all(flag.value for flag in self._flags)

    def tensors(self) -> list[Tensor]:
        """Return the tensors of this memory, which is lent from now on, once each time."""
        for flag in self._flags:
            flag.value = 0
        _lent.append(self)
        capsules = [_new_capsule(header, _NAME, None) for header in self._headers.tolist()]
        return [_from_dlpack(capsule, 0) for capsule in capsules]


# Blocks whose tensors MegEngine may still use, whatever became of the pools that they are of.
_lent: list[Block] = []
_settling = threading.Lock()  # or two threads would release a block twice
# What MegEngine's threads may use while the interpreter ends is never freed.
for _immortal in (_lent, _dropped):
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(_immortal))


class Pool:
    """Blocks of one layout, used again once they are free.

    Attributes:
        shapes: shapes of the tensors of a block.
        free: blocks that nothing reads any more.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self.shapes = shapes
        self.free: list[Block] = []

    def take(self) -> Block:
        """Return a free block; it is forgotten if its tensors are never made."""
        return self.free.pop() if self.free else Block(self)

    def release(self, block: Block) -> None:
        """Take back a block that nothing reads any more."""
        self.free.append(block)


def settle() -> None:
    """Wait for all that MegEngine has queued; then release the blocks dropped before that."""
    with _settling:
        dropped = [block for block in [*_lent] if block.is_dropped]
        full_sync()
        for block in dropped:
            _lent.remove(block)
            pool = block.pool()
            if pool is not None:
                pool.release(block)
