"""Memory that MegEngine's tensors and compiled code share, without copies.

MegEngine takes memory by the DLPack protocol: https://dmlc.github.io/dlpack/latest. It drops a
tensor, and tells the owner so, as soon as nothing more is going to be queued on it, although what
has been queued may not have run. So a block counts as free only once MegEngine has waited for all
that was queued when its last tensor had been dropped.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
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


def address_of(tensor: Tensor) -> int:
    """Return the address of a contiguous tensor's values, which may not be computed yet."""
    return ctypes.c_size_t.from_address(_get_pointer(_to_dlpack(tensor), _NAME)).value


class Block:
    """Memory for several float32 tensors that are made and dropped together.

    Attributes:
        addresses: address of each tensor's values, int64 [tensors].
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
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
        for flag in self._flags:
            flag.value = 1

    @property
    def is_dropped(self) -> bool:
        """Whether MegEngine has dropped all tensors of this block."""
        return all(flag.value for flag in self._flags)

    def tensors(self) -> list[Tensor]:
        """Return new tensors of this memory."""
        tensors = []
        for header, flag in zip(self._headers.tolist(), self._flags, strict=True):
            flag.value = 0
            tensors.append(_from_dlpack(_new_capsule(header, _NAME, None), 0))
        return tensors


class Pool:
    """Blocks of one layout, used again once they are free.

    Attributes:
        shapes: shapes of the tensors of a block.
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]]):
        self.shapes = shapes
        self._free: list[Block] = []
        self._held: list[Block] = []

    def take(self) -> Block:
        """Return a free block, which counts as held from now on."""
        block = self._free.pop() if self._free else Block(self.shapes)
        self._held.append(block)
        return block

    def dropped(self) -> list[Block]:
        """Return the held blocks all of whose tensors have been dropped."""
        return [block for block in self._held if block.is_dropped]

    def release(self, blocks: list[Block]) -> None:
        """Take back blocks that nothing reads any more."""
        self._held = [block for block in self._held if block not in blocks]
        self._free += blocks


def settle(*pools: Pool) -> None:
    """Wait for all that MegEngine has queued; then take back the blocks dropped before that."""
    dropped = [(pool, pool.dropped()) for pool in pools]
    full_sync()
    for pool, blocks in dropped:
        if blocks:
            pool.release(blocks)
