"""A convolution and an activation by oneDNN with their gradients, and what is faster without it.

Maps are [N, H, W, C], in float32 or, if a dense convolution reads them, in bfloat16. Weights and
their gradients are in whatever order is fastest, and are reordered from and to MegEngine's.
"""

from __future__ import annotations

from typing import NamedTuple

from . import onednn

# constants of dnnl_types.h, whose names begin with dnnl_; a tag is an order of axes, or any
_ANY, _A, _ABCD, _ACDB, _ABCDE = 1, 2, 5, 22, 6
_FORWARD, _DIRECT = 64, 1  # forward_training, convolution_direct

# from when on a matrix product is faster than oneDNN's gradient of the weights with AVX-512
_MANY_CHANNELS, _FEW_POSITIONS = 96, 4
_SMALL_DEPTHWISE = 256  # positions of a map up to which own loops are faster with AVX-512


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


# kind -> algorithm of dnnl_types.h with its two numbers
_ACTIVATIONS = {
    "relu": (0x20, 0.0, 0.0),  # dnnl_eltwise_relu
    "gelu": (0x31, 0.0, 0.0),  # dnnl_eltwise_gelu_erf, the exact one
    "sigmoid": (0x29, 0.0, 0.0),  # dnnl_eltwise_logistic
    "hard_sigmoid": (0x28, 1 / 6, 1 / 2),  # dnnl_eltwise_hardsigmoid
    "negative": (0x26, -1.0, 0.0),  # dnnl_eltwise_linear
}


class Activation:
    """An activation of arrays of `size` floats, with its gradient, as primitives.

    Attributes:
        forward: SRC -> DST.
        backward: SRC, DIFF_DST -> DIFF_SRC.
    """

    def __init__(self, kind: str, size: int):
        algorithm, *numbers = _ACTIVATIONS[kind]
        values = onednn.strided_layout((size,), (1,))
        forward = onednn.created(
            "dnnl_eltwise_forward_primitive_desc_create",
            onednn.engine(), _FORWARD, algorithm, values, values, *numbers, onednn.attributes(),
        )  # fmt: skip
        backward = onednn.created(
            "dnnl_eltwise_backward_primitive_desc_create",
            onednn.engine(), algorithm, values, values, values, *numbers, forward,
            onednn.attributes(),
        )  # fmt: skip
        self.forward = onednn.Primitive(forward, {onednn.SRC: values, onednn.DST: values})
        self.backward = onednn.Primitive(
            backward, {onednn.SRC: values, onednn.DIFF_DST: values, onednn.DIFF_SRC: values}
        )


class ConvolutionPrimitives:
    """A convolution with its gradients, as primitives.

    Inputs, weights and output gradients may be bfloat16; what is computed is float32.

    Attributes:
        geometry, bfloat16: what was given.
        kind: oneDNN's data type of inputs, weights and output gradients.
        forward: SRC, WEIGHTS (and BIAS) -> DST.
        backward_data: DIFF_DST, WEIGHTS -> DIFF_SRC.
        backward_weights: SRC, DIFF_DST -> DIFF_WEIGHTS (and DIFF_BIAS).
        to_forward, to_backward: SRC, weights in MegEngine's layout -> DST, in the primitive's
            layout and data type; None where they are the same.
        from_backward: SRC, the primitive's gradient of the weights -> DST, in MegEngine's layout.
    """

    def __init__(self, geometry: Geometry, bfloat16: bool = False):
        self.geometry, self.bfloat16 = geometry, bfloat16
        self.kind = kind = onednn.BFLOAT16 if bfloat16 else onednn.FLOAT32
        n, h, w, i, o, kernel, stride, padding, groups, bias = geometry
        _, oh, ow, _ = geometry.output
        x = onednn.tagged_layout((n, i, h, w), _ACDB)
        y = onednn.tagged_layout((n, o, oh, ow), _ACDB)
        read_x = onednn.tagged_layout((n, i, h, w), _ACDB, kind)
        read_y = onednn.tagged_layout((n, o, oh, ow), _ACDB, kind)
        shape: tuple[int, ...] = (o, i, kernel, kernel)
        if groups > 1:
            shape = (groups, o // groups, i // groups, kernel, kernel)
        weights = onednn.tagged_layout(shape, _ANY, kind)
        of_weights = onednn.tagged_layout(shape, _ANY)
        b = onednn.tagged_layout((o,), _A) if bias else None
        pad = onednn.numbers(padding, padding)
        axes = (onednn.numbers(stride, stride), onednn.numbers(0, 0), pad, pad)
        forward = onednn.created(
            "dnnl_convolution_forward_primitive_desc_create",
            onednn.engine(), _FORWARD, _DIRECT, read_x, weights, b, y, *axes, onednn.attributes(),
        )  # fmt: skip
        data = onednn.created(
            "dnnl_convolution_backward_data_primitive_desc_create",
            onednn.engine(), _DIRECT, x, weights, read_y, *axes, forward, onednn.attributes(),
        )  # fmt: skip
        gradient = onednn.created(
            "dnnl_convolution_backward_weights_primitive_desc_create",
            onednn.engine(), _DIRECT, read_x, of_weights, b, read_y, *axes, forward,
            onednn.attributes(),
        )  # fmt: skip
        of_bias = {} if b is None else {onednn.BIAS: b}
        of_bias_gradient = {} if b is None else {onednn.DIFF_BIAS: b}
        forward_layouts = onednn.query(forward, onednn.SRC, onednn.WEIGHTS, onednn.DST)
        data_layouts = onednn.query(data, onednn.DIFF_DST, onednn.WEIGHTS, onednn.DIFF_SRC)
        gradient_layouts = onednn.query(gradient, onednn.SRC, onednn.DIFF_DST, onednn.DIFF_WEIGHTS)
        self.forward = onednn.Primitive(forward, {**forward_layouts, **of_bias})
        self.backward_data = onednn.Primitive(data, data_layouts)
        self.backward_weights = onednn.Primitive(gradient, {**gradient_layouts, **of_bias_gradient})
        plain = onednn.tagged_layout(shape, _ABCDE if groups > 1 else _ABCD)
        self.to_forward = onednn.reorder(plain, forward_layouts[onednn.WEIGHTS])
        self.to_backward = onednn.reorder(plain, data_layouts[onednn.WEIGHTS])
        self.from_backward = onednn.reorder(gradient_layouts[onednn.DIFF_WEIGHTS], plain)

    def by_own_loops(self, primitive: onednn.Primitive) -> bool:
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
        writes behind its scratchpad, and with AVX2 and two threads it may never return. In bfloat16
        oneDNN is wrong with a stride where a kernel is larger than the map, and slower with others.
        """
        g, name = self.geometry, self.backward_weights.implementation
        if g.groups > 1:
            return False
        if g.stride > 1 and (self.bfloat16 or name.startswith("jit_1x1:")):
            return True
        if "avx512" in name:
            _, oh, ow, _ = g.output
            return g.i >= _MANY_CHANNELS and (g.stride > 1 or oh * ow <= _FEW_POSITIONS)
        return g.stride > 1 or name in ("jit_1x1:avx2", "x64:gemm:jit")
