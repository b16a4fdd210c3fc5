"""Convolutions, activations and layouts of oneDNN, by its C interface.

Source: https://oneapi-src.github.io/oneDNN (version 3.2). Maps are float32 [N, H, W, C]. Weights
and their gradients are in whatever order is fastest, and are reordered from and to MegEngine's.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from functools import cache
from typing import NamedTuple

from . import libraries

# constants of dnnl_types.h
_FLOAT32, _ANY, _A, _ABCD, _ACDB, _ABCDE = 3, 1, 2, 5, 22, 6
_FORWARD, _DIRECT, _IMPLEMENTATION = 64, 1, 8
SRC, DST, WEIGHTS, BIAS = 1, 17, 33, 41
DIFF_SRC, DIFF_DST, DIFF_WEIGHTS, DIFF_BIAS, SCRATCHPAD = 129, 145, 161, 169, 80
_QUERY = {SRC: 129, DIFF_SRC: 130, WEIGHTS: 131, DIFF_WEIGHTS: 132, DST: 133, DIFF_DST: 134,
          SCRATCHPAD: 136}  # fmt: skip


# from when on a matrix product is faster than oneDNN's gradient of the weights with AVX-512
_MANY_CHANNELS, _FEW_POSITIONS = 96, 4
_SMALL_DEPTHWISE = 256  # positions of a map up to which own loops are faster with AVX-512


class Error(Exception):
    """oneDNN refused a call."""


class _Argument(ctypes.Structure):
    _fields_ = (("arg", c_int), ("memory", c_void_p))


class Geometry(NamedTuple):
    """A convolution of a batch: maps [n, h, w, i] -> [n, oh, ow, o], square kernel and stride."""

    n: int
    h: int
    w: int
    i: int
    o: int
    kernel: int
    stride: int
    padding: int
    groups: int
    bias: bool

    @property
    def output(self) -> tuple[int, int, int, int]:
        """Shape of the output, [n, oh, ow, o]."""
        oh, ow = (
            (size + 2 * self.padding - self.kernel) // self.stride + 1 for size in (self.h, self.w)
        )
        return self.n, oh, ow, self.o

    @property
    def sizes(self) -> tuple[int, ...]:
        """What own loops take: n, h, w, i, kernel, stride, padding."""
        return self.n, self.h, self.w, self.i, self.kernel, self.stride, self.padding


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


def _created(name: str, *arguments: object) -> int:
    """Call a function of oneDNN that creates something, and return it."""
    handle = c_void_p()
    status = getattr(library(), name)(byref(handle), *arguments)
    if status:
        raise Error(f"{name} ended with status {status}")
    return handle.value or 0


@cache
def engine() -> int:
    """Return the CPU's engine."""
    return _created("dnnl_engine_create", 1, 0)


@cache
def stream() -> int:
    """Return the stream in which everything runs, in order."""
    return _created("dnnl_stream_create", engine(), 1)


@cache
def _attributes() -> int:
    attributes = _created("dnnl_primitive_attr_create")
    library().dnnl_primitive_attr_set_scratchpad_mode(attributes, 1)  # the caller gives the memory
    return attributes


def _destroyed_with(owner: object, function: str, handle: int) -> None:
    """Call a function of oneDNN with a handle when its owner is gone, but for the program's end."""
    weakref.finalize(owner, getattr(library(), function), handle).atexit = False


def _numbers(*values: int) -> ctypes.Array:
    return (c_int64 * len(values))(*values)


@cache
def _strided(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    sizes = len(shape), _numbers(*shape), _FLOAT32
    return _created("dnnl_memory_desc_create_with_strides", *sizes, _numbers(*strides))


def _matrix(rows: int, columns: int, transposed: bool = False) -> int:
    return _strided((rows, columns), (1, rows) if transposed else (columns, 1))


@cache
def _layout(shape: tuple[int, ...], tag: int) -> int:
    return _created("dnnl_memory_desc_create_with_tag", len(shape), _numbers(*shape), _FLOAT32, tag)


def address(function: str) -> int:
    """Return the address of a function, for compiled code."""
    return ctypes.cast(getattr(library(), function), c_void_p).value or 0


class Memory:
    """oneDNN's handle of a block of memory, whose address is set before it is used."""

    def __init__(self, layout: int):
        self.handle = _created("dnnl_memory_create", layout, engine(), None)
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
        self.handle = _created("dnnl_primitive_create", description)
        _destroyed_with(self, "dnnl_primitive_destroy", self.handle)
        _destroyed_with(self, "dnnl_primitive_desc_destroy", description)
        scratchpad = library().dnnl_primitive_desc_query_md(description, _QUERY[SCRATCHPAD], 0)
        self.memory = {
            argument: Memory(layout)
            for argument, layout in {**layouts, SCRATCHPAD: scratchpad}.items()
        }
        self._arguments = (_Argument * len(self.memory))(
            *(_Argument(argument, memory.handle) for argument, memory in self.memory.items())
        )
        self.count = len(self.memory)

    @property
    def arguments(self) -> int:
        """Address of the list of arguments."""
        return ctypes.addressof(self._arguments)


def _query(description: int, *arguments: int) -> dict[int, int]:
    return {
        argument: library().dnnl_primitive_desc_query_md(description, _QUERY[argument], 0)
        for argument in arguments
    }


def _implementation(description: int) -> str:
    name = c_char_p()
    library().dnnl_primitive_desc_query(description, _IMPLEMENTATION, 0, byref(name))
    return (name.value or b"").decode()


def _reorder(source: int, destination: int) -> Primitive | None:
    """Return the copy from one layout to another, or None where both are the same."""
    if library().dnnl_memory_desc_equal(source, destination):
        return None
    return _copy(source, destination)


def _copy(source: int, destination: int) -> Primitive:
    description = _created(
        "dnnl_reorder_primitive_desc_create", source, engine(), destination, engine(), _attributes()
    )
    return Primitive(description, {SRC: source, DST: destination})


def transposition(count: int, rows: int, columns: int) -> Primitive:
    """Return SRC [count, rows, columns] -> DST [count, columns, rows]."""
    shape, size = (count, rows, columns), rows * columns
    return _copy(_strided(shape, (size, columns, 1)), _strided(shape, (size, 1, rows)))


def transposed_product(rows: int, columns: int, others: int) -> Primitive:
    """Return SRC^T WEIGHTS -> DST, of SRC [rows, columns] and WEIGHTS [rows, others]."""
    source, weights = _matrix(columns, rows, transposed=True), _matrix(rows, others)
    target = _matrix(columns, others)
    description = _created(
        "dnnl_matmul_primitive_desc_create",
        engine(), source, weights, None, target, _attributes(),
    )  # fmt: skip
    return Primitive(description, {SRC: source, WEIGHTS: weights, DST: target})


# kind -> algorithm of oneDNN with its two numbers
_ACTIVATIONS = {
    "relu": (0x20, 0.0, 0.0),
    "gelu": (0x31, 0.0, 0.0),  # the exact one
    "sigmoid": (0x29, 0.0, 0.0),
    "hard_sigmoid": (0x28, 1 / 6, 1 / 2),
    "negative": (0x26, -1.0, 0.0),
}


class Activation:
    """An activation of arrays of `size` floats, with its gradient, as primitives.

    Attributes:
        forward: SRC -> DST.
        backward: SRC, DIFF_DST -> DIFF_SRC.
    """

    def __init__(self, kind: str, size: int):
        algorithm, *numbers = _ACTIVATIONS[kind]
        values = _strided((size,), (1,))
        forward = _created(
            "dnnl_eltwise_forward_primitive_desc_create",
            engine(), _FORWARD, algorithm, values, values, *numbers, _attributes(),
        )  # fmt: skip
        backward = _created(
            "dnnl_eltwise_backward_primitive_desc_create",
            engine(), algorithm, values, values, values, *numbers, forward, _attributes(),
        )  # fmt: skip
        self.forward = Primitive(forward, {SRC: values, DST: values})
        self.backward = Primitive(backward, {SRC: values, DIFF_DST: values, DIFF_SRC: values})


class Convolution:
    """A convolution with its gradients, as primitives.

    Attributes:
        geometry: what was given.
        forward: SRC, WEIGHTS (and BIAS) -> DST.
        backward_data: DIFF_DST, WEIGHTS -> DIFF_SRC.
        backward_weights: SRC, DIFF_DST -> DIFF_WEIGHTS (and DIFF_BIAS).
        to_forward, to_backward: SRC, weights in MegEngine's layout -> DST, in the primitive's; None
            where it is the same.
        from_backward: SRC, the primitive's gradient of the weights -> DST, in MegEngine's layout.
    """

    def __init__(self, geometry: Geometry):
        self.geometry = geometry
        n, h, w, i, o, kernel, stride, padding, groups, bias = geometry
        _, oh, ow, _ = geometry.output
        x, y = _layout((n, i, h, w), _ACDB), _layout((n, o, oh, ow), _ACDB)
        shape: tuple[int, ...] = (o, i, kernel, kernel)
        if groups > 1:
            shape = (groups, o // groups, i // groups, kernel, kernel)
        weights = _layout(shape, _ANY)
        b = _layout((o,), _A) if bias else None
        steps, dilation, pad = _numbers(stride, stride), _numbers(0, 0), _numbers(padding, padding)
        axes = (steps, dilation, pad, pad)
        forward = _created(
            "dnnl_convolution_forward_primitive_desc_create",
            engine(), _FORWARD, _DIRECT, x, weights, b, y, *axes, _attributes(),
        )  # fmt: skip
        data = _created(
            "dnnl_convolution_backward_data_primitive_desc_create",
            engine(), _DIRECT, x, weights, y, *axes, forward, _attributes(),
        )  # fmt: skip
        gradient = _created(
            "dnnl_convolution_backward_weights_primitive_desc_create",
            engine(), _DIRECT, x, weights, b, y, *axes, forward, _attributes(),
        )  # fmt: skip
        of_bias = {} if b is None else {BIAS: b}
        of_bias_gradient = {} if b is None else {DIFF_BIAS: b}
        forward_layouts = _query(forward, SRC, WEIGHTS, DST)
        data_layouts = _query(data, DIFF_DST, WEIGHTS, DIFF_SRC)
        gradient_layouts = _query(gradient, SRC, DIFF_DST, DIFF_WEIGHTS)
        self.forward = Primitive(forward, {**forward_layouts, **of_bias})
        self.backward_data = Primitive(data, data_layouts)
        self.backward_weights = Primitive(gradient, {**gradient_layouts, **of_bias_gradient})
        plain = _layout(shape, _ABCDE if groups > 1 else _ABCD)
        self.to_forward = _reorder(plain, forward_layouts[WEIGHTS])
        self.to_backward = _reorder(plain, data_layouts[WEIGHTS])
        self.from_backward = _reorder(gradient_layouts[DIFF_WEIGHTS], plain)

    def by_own_loops(self, primitive: Primitive) -> bool:
        """Return whether it is one that depthwise_kernels.py computes faster.

        oneDNN has no depthwise kernel for some, most often the gradient of the weights: own loops
        are up to 100 times as fast there, with AVX-512 as long as the maps are small.
        """
        g, name = self.geometry, primitive.implementation
        if g.bias or not g.groups == g.i == g.o > 1:
            return False
        _, oh, ow, _ = g.output
        small = oh * ow <= _SMALL_DEPTHWISE
        return name == "x64:gemm:jit" or (name == "jit:avx512_core" and small)

    @property
    def weights_by_product(self) -> bool:
        """Whether a matrix product computes the gradient of the weights.

        It is up to 6 times as fast with AVX2 for 1x1 kernels, with a stride and for tiny maps, and
        1.1 to 4 times with AVX-512 for many channels with a stride or in tiny maps. oneDNN's
        jit_1x1 needs it with a stride: for few channels of large maps, such as 3 of 224 px, it
        writes behind its scratchpad, and with AVX2 and two threads it may never return.
        """
        g, name = self.geometry, self.backward_weights.implementation
        if g.groups > 1:
            return False
        if g.stride > 1 and name.startswith("jit_1x1:"):
            return True
        if "avx512" in name:
            _, oh, ow, _ = g.output
            return g.i >= _MANY_CHANNELS and (g.stride > 1 or oh * ow <= _FEW_POSITIONS)
        return g.stride > 1 or name in ("jit_1x1:avx2", "x64:gemm:jit")
