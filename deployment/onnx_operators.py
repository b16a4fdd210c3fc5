"""Handlers that translate MegEngine's operators into ONNX's; `onnx_graph` calls them.

A handler takes the graph that is being built and the operator's arguments, which are names of
tensors in the graph, `Weight`s and plain values. It returns the name of the output.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import megengine.functional as F
import megengine.module as M
import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

from .tracing import Unsupported, Weight

Operand = str | float | Weight  # of an elementwise operator; a str is a tensor's name


class Graph:
    """Nodes and initializers of an ONNX graph that is being built.

    The network's parameters become initializers; all other numbers become Constant nodes.
    """

    def __init__(self) -> None:
        self.nodes: list[NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}
        self.module = ""  # path of the Module whose operators are added, for their names
        self._used: Counter[str] = Counter()

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Add a node and return its name, which is also its output's name."""
        name = f"{self.module}.{kind}" if self.module else kind
        self._used[name] += 1
        if self._used[name] > 1:
            name += f"_{self._used[name]}"
        self.nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def parameter(self, name: str, value: np.ndarray) -> str:
        """Add an initializer and return its name."""
        self.initializers[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def operand(self, value: Operand) -> str:
        """Return the tensor of an elementwise operator's operand; a number becomes a Constant."""
        if isinstance(value, str):
            return value
        array = value.value if isinstance(value, Weight) else np.array(value, np.float32)
        return self.op("Constant", value=numpy_helper.from_array(array))


def _conv2d(
    graph: Graph,
    inp: str,
    weight: Weight,
    bias: Weight | None,
    stride: int | tuple[int, int],
    padding: int | tuple[int, int],
    dilation: int | tuple[int, int],
    groups: int,
    conv_mode: str,
    compute_mode: str,
    **_: Any,
) -> str:
    if conv_mode != "cross_correlation" or compute_mode != "default":
        raise Unsupported(
            f"has a convolution with conv_mode {conv_mode!r} and compute_mode {compute_mode!r}; "
            "only 'cross_correlation' and 'default' can be exported"
        )
    kernel = weight.value.reshape(-1, *weight.value.shape[-3:])  # [G, O/G, I/G, kh, kw] -> [O, ...]
    inputs = [inp, graph.parameter(weight.name, kernel)]
    if bias is not None:
        inputs.append(graph.parameter(bias.name, bias.value.reshape(-1)))
    return graph.op(
        "Conv",
        *inputs,
        kernel_shape=kernel.shape[2:],
        strides=_pair(stride),
        pads=_pair(padding) * 2,
        dilations=_pair(dilation),
        group=groups,
    )


def _linear(
    graph: Graph, inp: str, weight: Weight, bias: Weight | None, compute_mode: str, **_: Any
) -> str:
    if compute_mode != "default":
        raise Unsupported(
            f"has a linear layer with compute_mode {compute_mode!r}; only 'default' can be exported"
        )
    parameters = [graph.parameter(w.name, w.value) for w in (weight, bias) if w is not None]
    return graph.op("Gemm", inp, *parameters, transB=1)


def _batch_norm(
    graph: Graph,
    inp: str,
    running_mean: Weight,
    running_var: Weight,
    weight: Weight | None,
    bias: Weight | None,
    training: bool,
    eps: float,
    **_: Any,
) -> str:
    if training:
        raise Unsupported("has a batch norm in training mode")
    if weight is None or bias is None:
        raise Unsupported(
            "has a batch norm without weight or bias; only one with both can be exported"
        )
    weights = (weight, bias, running_mean, running_var)
    parameters = [graph.parameter(w.name, w.value.reshape(-1)) for w in weights]
    return graph.op("BatchNormalization", inp, *parameters, epsilon=float(eps))


def _gelu(graph: Graph, x: str) -> str:
    # x (1 + erf(x / sqrt 2)) / 2: runtimes recognize this order
    erf = graph.op("Erf", graph.op("Div", x, graph.operand(math.sqrt(2))))
    product = graph.op("Mul", x, graph.op("Add", erf, graph.operand(1)))
    return graph.op("Mul", product, graph.operand(0.5))


def _mean(graph: Graph, inp: str, axis: int | Sequence[int] | None, keepdims: bool) -> str:
    if axis is None or isinstance(axis, int) or tuple(axis) != (2, 3):
        raise Unsupported(
            f"computes a mean over axes {axis}; only a mean over (2, 3) can be exported"
        )
    pooled = graph.op("GlobalAveragePool", inp)
    return pooled if keepdims else graph.op("Flatten", pooled, axis=1)


def _flatten(graph: Graph, inp: str, start_axis: int, end_axis: int) -> str:
    if (start_axis, end_axis) != (1, -1):
        raise Unsupported(f"flattens axes {start_axis} to {end_axis}; only 1 to -1 can be exported")
    return graph.op("Flatten", inp, axis=1)


# 1/6, but for the last bit: OpenCV's dnn 4.11 takes any product with HardSigmoid(alpha=1/6) for
# HardSwish, x * HardSigmoid(x), also where the factor is another tensor, as in a gate.
_SIXTH = float(np.nextafter(np.float32(1 / 6), np.float32(0)))


def _unary(kind: str, **attributes: Any) -> Callable[[Graph, str], str]:
    return lambda graph, x: graph.op(kind, x, **attributes)


def _binary(kind: str) -> Callable[[Graph, Operand, Operand], str]:
    return lambda graph, x, y: graph.op(kind, graph.operand(x), graph.operand(y))


def _pair(value: int | tuple[int, int]) -> list[int]:
    return list(value) if isinstance(value, tuple | list) else [value, value]


HANDLERS: dict[Any, Callable[..., str]] = {
    F.conv2d: _conv2d,
    F.nn.linear: _linear,
    F.nn.batch_norm: _batch_norm,
    F.relu: _unary("Relu"),
    F.gelu: _gelu,
    F.sigmoid: _unary("Sigmoid"),
    F.hsigmoid: _unary("HardSigmoid", alpha=_SIXTH, beta=0.5),
    F.mean: _mean,
    F.flatten: _flatten,
    "__add__": _binary("Add"),
    "__sub__": _binary("Sub"),
    "__mul__": _binary("Mul"),
    "__truediv__": _binary("Div"),
    M.Dropout: lambda graph, x: x,  # the identity in evaluation mode
}
