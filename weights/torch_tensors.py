"""The tensors in PyTorch's files, as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from data import foreign
from data.unpickle import DamagedError, ForbiddenError, UnsuitableError

# The types of the elements as they are stored; `decode` turns two of them into NumPy's.
STORAGES = {
    "torch.DoubleStorage": "f8",
    "torch.FloatStorage": "f4",
    "torch.HalfStorage": "f2",
    "torch.BFloat16Storage": "u2",
    "torch.LongStorage": "i8",
    "torch.IntStorage": "i4",
    "torch.ShortStorage": "i2",
    "torch.CharStorage": "i1",
    "torch.ByteStorage": "u1",
    "torch.BoolStorage": "u1",
    "torch.ComplexFloatStorage": "c8",
    "torch.ComplexDoubleStorage": "c16",
    "torch.storage.UntypedStorage": "u1",
}
_DTYPES = (
    *("float64", "float32", "float16", "bfloat16", "complex64", "complex128"),
    *("int64", "int32", "int16", "int8", "uint8", "bool"),
)
# Types without storages of their own, and NumPy's for them where it has one.
_UNTYPED = {
    "uint16": "u2",
    "uint32": "u4",
    "uint64": "u8",
    **dict.fromkeys(("float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz")),
}


_EXPANDED = 4096  # elements of a tensor that repeats a smaller storage, such as a buffer


def decode(kind: str, stored: np.ndarray) -> np.ndarray:
    """Return the values of a storage, [numel]: bfloat16 as float32, bytes of booleans as bool."""
    if kind == "torch.BFloat16Storage":
        return bfloat16(stored)
    return stored != 0 if kind == "torch.BoolStorage" else stored


def _rebuild_tensor(
    storage: np.ndarray, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *notes: Any
) -> np.ndarray:
    """Return a tensor as a view of a storage; offset and strides count elements.

    A tensor that is much larger than its storage is refused: the network would not be.
    """
    if isinstance(storage, foreign.Placeholder):
        return storage
    _requires_grad, _hooks, metadata = (*notes, None, None, None)[:3]
    if metadata:
        raise ForbiddenError("a tensor that is conjugated or negated when it is used")
    whole = all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
    if not whole or len(size) != len(stride):
        raise DamagedError(f"a tensor has offset {offset}, size {size} and stride {stride}")
    if 0 in size:
        view = np.empty(size, storage.dtype)
    else:
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if last >= storage.size:
            raise DamagedError(f"a tensor uses element {last} of a storage of {storage.size}")
        start, *strides = (step * storage.itemsize for step in (offset, *stride))
        view = np.ndarray(size, storage.dtype, storage, start, strides)
        if view.size > max(storage.size, _EXPANDED):
            raise UnsuitableError(
                f"has a tensor of {view.size} elements that repeats a storage of {storage.size}, "
                "which would fill the memory; save the weights without it, or its contiguous()"
            )
    view.flags.writeable = False
    return view


def _rebuild_tensor_v3(
    storage: np.ndarray,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    _requires_grad: bool,
    _hooks: Any,
    dtype: Any,
    *_notes: Any,
) -> Any:
    """Return a tensor of a type that has no storages of its own, from a storage of bytes."""
    name = str(dtype).removeprefix("torch.")
    if isinstance(storage, foreign.Placeholder):
        return storage
    filled = not storage.flags.writeable  # in the format before 1.6 the bytes come later
    if name not in _UNTYPED or not filled:
        return foreign.placeholder(f"a tensor of {name}")()
    if _UNTYPED[name] is None:
        values = float8(name, storage)
    else:
        width = np.dtype(_UNTYPED[name]).itemsize
        values = storage[: storage.size // width * width].view(_UNTYPED[name])
    return _rebuild_tensor(values, offset, size, stride)


def bfloat16(stored: np.ndarray) -> np.ndarray:
    """Return numbers of type bfloat16, given as uint16, as float32."""
    bits = stored.astype(np.uint32)
    bits <<= 16  # they are the upper halves
    return bits.view(np.float32)


def float8(name: str, stored: np.ndarray) -> np.ndarray:
    """Return bytes that are numbers of ml_dtypes' type `name` as float32."""
    import ml_dtypes  # NumPy has none of 8 bits

    return stored.view(np.dtype(getattr(ml_dtypes, name))).astype(np.float32)


# What PyTorch's pickles name -> what stands in for it.
STAND_INS: dict[str, Any] = {
    **{name: name for name in (*STORAGES, "torch.Tensor", "torch.nn.parameter.Parameter")},
    **{f"torch.{name}": f"torch.{name}" for name in (*_DTYPES, *_UNTYPED)},
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": lambda data, *_notes: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, *_notes: data,
    # A tensor with attributes, which are left out.
    "torch._tensor._rebuild_from_type_v2": lambda rebuild, _type, args, _state: rebuild(*args),
    "torch._utils._rebuild_tensor_v3": _rebuild_tensor_v3,
    "torch._utils._rebuild_device_tensor_from_numpy": lambda values, *_notes: values,
    "torch.Size": tuple,
    "torch.device": lambda *parts: ":".join(map(str, parts)),
}
