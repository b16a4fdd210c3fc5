"""oneDNN by its C interface: memory, its layouts, and computations that compiled code runs.

Source: https://oneapi-src.github.io/oneDNN (version 3.2).
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache

from . import libraries

# constants of dnnl_types.h, whose names begin with dnnl_ or, for arguments, with DNNL_ARG_
_CPU, _STREAM_IN_ORDER, _SCRATCHPAD_MODE_USER, _QUERY_IMPL_INFO_STR = 1, 1, 1, 8
BFLOAT16, FLOAT32 = 2, 3
SRC, DST, WEIGHTS, BIAS = 1, 17, 33, 41
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS, SCRATCHPAD = 129, 145, 161, 169, 80
_QUERY_MD = {SRC: 129, DIFF_SRC: 130, WEIGHTS: 131, DIFF_WEIGHTS: 132, DST: 133, DIFF_DST: 134,
             SCRATCHPAD: 136}  # fmt: skip


class Error(Exception):
    """oneDNN refused a call."""


class _Argument(ctypes.Structure):
    _fields_ = (("arg", c_int), ("memory", c_void_p))


@cache
def library() -> ctypes.CDLL:
    """Return oneDNN with the types of the functions that are used."""
    lib = libraries.load()
    pointer, md = POINTER(c_void_p), c_void_p
    signatures = {
        "dnnl_engine_create": [pointer, c_int, c_size_t],
        "dnnl_stream_create": [pointer, c_void_p, c_int],
        "dnnl_primitive_attr_create": [pointer],
        "dnnl_primitive_attr_set_scratchpad_mode": [c_void_p, c_int],
        "dnnl_memory_desc_create_with_tag": [pointer, c_int, c_void_p, c_int, c_int],
        "dnnl_memory_desc_equal": [md, md],
        "dnnl_memory_create": [pointer, md, c_void_p, c_void_p],
        "dnnl_primitive_create": [pointer, c_void_p],
        "dnnl_convolution_forward_primitive_desc_create": [
            pointer, c_void_p, c_int, c_int, md, md, md, md, *[c_void_p] * 5,
        ],
        "dnnl_convolution_backward_data_primitive_desc_create": [
            pointer, c_void_p, c_int, md, md, md, *[c_void_p] * 6,
        ],
        "dnnl_convolution_backward_weights_primitive_desc_create": [
            pointer, c_void_p, c_int, md, md, md, md, *[c_void_p] * 6,
        ],
        "dnnl_memory_desc_create_with_strides": [pointer, c_int, c_void_p, c_int, c_void_p],
        "dnnl_matmul_primitive_desc_create": [pointer, c_void_p, md, md, md, md, c_void_p],
        "dnnl_reorder_primitive_desc_create": [pointer, md, c_void_p, md, c_void_p, c_void_p],
        "dnnl_eltwise_forward_primitive_desc_create": [
            pointer, c_void_p, c_int, c_int, md, md, c_float, c_float, c_void_p,
        ],
        "dnnl_eltwise_backward_primitive_desc_create": [
            pointer, c_void_p, c_int, md, md, md, c_float, c_float, c_void_p, c_void_p,
        ],
    }  # fmt: skip
    for kind in ("memory", "primitive", "primitive_desc"):
        signatures[f"dnnl_{kind}_destroy"] = [c_void_p]
    for name, types in signatures.items():
        getattr(lib, name).argtypes = types
    lib.dnnl_primitive_desc_query.argtypes = [c_void_p, c_int, c_int, POINTER(c_char_p)]
    lib.dnnl_primitive_desc_query_md.argtypes = [c_void_p, c_int, c_int]
    lib.dnnl_primitive_desc_query_md.restype = c_void_p
    lib.dnnl_memory_desc_get_size.argtypes = [md]
    lib.dnnl_memory_desc_get_size.restype = c_size_t
    return lib


def created(name: str, *arguments: object) -> int:
    """Call a function of oneDNN that creates something, and return it."""
    handle = c_void_p()
    status = getattr(library(), name)(byref(handle), *arguments)
    if status:
        raise Error(f"{name} ended with status {status}")
    return handle.value or 0


@cache
def engine() -> int:
    """Return the CPU's engine."""
    return created("dnnl_engine_create", _CPU, 0)


@cache
def stream() -> int:
    """Return the stream in which everything runs, in order."""
    return created("dnnl_stream_create", engine(), _STREAM_IN_ORDER)


@cache
def attributes() -> int:
    """Return the settings of every primitive."""
    attributes = created("dnnl_primitive_attr_create")
    # the caller gives the memory
    library().dnnl_primitive_attr_set_scratchpad_mode(attributes, _SCRATCHPAD_MODE_USER)
    return attributes


def _destroyed_with(owner: object, function: str, handle: int) -> None:
    """Call a function of oneDNN with a handle when its owner is gone, but for the program's end."""
    weakref.finalize(owner, getattr(library(), function), handle).atexit = False


def numbers(*values: int) -> ctypes.Array:
    """Return an array of int64."""
    return (c_int64 * len(values))(*values)


@cache
def strided_layout(shape: tuple[int, ...], strides: tuple[int, ...], kind: int = FLOAT32) -> int:
    """Return the layout of values with a stride, in values, for each axis."""
    sizes = len(shape), numbers(*shape), kind
    return created("dnnl_memory_desc_create_with_strides", *sizes, numbers(*strides))


def _matrices(
    count: int, rows: int, columns: int, transposed: bool = False, kind: int = FLOAT32
) -> int:
    strides = (1, rows) if transposed else (columns, 1)
    if count == 1:
        return strided_layout((rows, columns), strides, kind)
    return strided_layout((count, rows, columns), (rows * columns, *strides), kind)


@cache
def tagged_layout(shape: tuple[int, ...], tag: int, kind: int = FLOAT32) -> int:
    """Return the layout of values in an order of axes that dnnl_types.h names."""
    return created("dnnl_memory_desc_create_with_tag", len(shape), numbers(*shape), kind, tag)


def address(function: str) -> int:
    """Return the address of a function, for compiled code."""
    return ctypes.cast(getattr(library(), function), c_void_p).value or 0


class Memory:
    """oneDNN's handle of a block of memory, whose address is set before it is used."""

    def __init__(self, layout: int):
        self.handle = created("dnnl_memory_create", layout, engine(), None)
        _destroyed_with(self, "dnnl_memory_destroy", self.handle)
        self.size = library().dnnl_memory_desc_get_size(layout)  # bytes


class Primitive:
    """A computation of oneDNN, created for its arguments' layouts, and run by compiled code.

    Attributes:
        memory: argument -> Memory.
        implementation: oneDNN's name of the code that computes it.
    """

    def __init__(self, description: int, layouts: dict[int, int]):
        self.implementation = _implementation(description)
        self.handle = created("dnnl_primitive_create", description)
        _destroyed_with(self, "dnnl_primitive_destroy", self.handle)
        _destroyed_with(self, "dnnl_primitive_desc_destroy", description)
        scratchpad = library().dnnl_primitive_desc_query_md(description, _QUERY_MD[SCRATCHPAD], 0)
        self.memory = {
            argument: Memory(layout)
            for argument, layout in {**layouts, SCRATCHPAD: scratchpad}.items()
        }
        self._arguments = (_Argument * len(self.memory))(
            *(_Argument(argument, memory.handle) for argument, memory in self.memory.items())
        )

    @property
    def arguments(self) -> int:
        """Address of the list of arguments."""
        return ctypes.addressof(self._arguments)


def query(description: int, *arguments: int) -> dict[int, int]:
    """Return the layouts that a primitive has chosen for arguments."""
    return {
        argument: library().dnnl_primitive_desc_query_md(description, _QUERY_MD[argument], 0)
        for argument in arguments
    }


def _implementation(description: int) -> str:
    name = c_char_p()
    library().dnnl_primitive_desc_query(description, _QUERY_IMPL_INFO_STR, 0, byref(name))
    return (name.value or b"").decode()


def reorder(source: int, destination: int) -> Primitive | None:
    """Return the copy from one layout to another, or None where both are the same."""
    if library().dnnl_memory_desc_equal(source, destination):
        return None
    return _copy(source, destination)


def _copy(source: int, destination: int) -> Primitive:
    description = created(
        "dnnl_reorder_primitive_desc_create", source, engine(), destination, engine(), attributes()
    )
    return Primitive(description, {SRC: source, DST: destination})


def rounding(size: int) -> Primitive:
    """Return SRC float32 [size] -> DST bfloat16 [size]."""
    return _copy(strided_layout((size,), (1,)), strided_layout((size,), (1,), BFLOAT16))


def transposition(count: int, rows: int, columns: int) -> Primitive:
    """Return SRC [count, rows, columns] -> DST [count, columns, rows]."""
    shape, size = (count, rows, columns), rows * columns
    return _copy(strided_layout(shape, (size, columns, 1)), strided_layout(shape, (size, 1, rows)))


def products(
    count: int, rows: int, inner: int, columns: int, transposed: str = "", kind: int = FLOAT32
) -> Primitive:
    """Return SRC WEIGHTS -> DST for `count` pairs of matrices, [rows, inner] and [inner, columns].

    Where `transposed` is "source" or "weights", these are in memory as [inner, rows] or [columns,
    inner]. DST is float32, and `kind` that of the others.
    """
    source = _matrices(count, rows, inner, transposed == "source", kind)
    weights = _matrices(count, inner, columns, transposed == "weights", kind)
    target = _matrices(count, rows, columns)
    description = created(
        "dnnl_matmul_primitive_desc_create",
        engine(), source, weights, None, target, attributes(),
    )  # fmt: skip
    return Primitive(description, {SRC: source, WEIGHTS: weights, DST: target})
