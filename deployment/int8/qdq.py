"""A float ONNX network as an int8 one: QuantizeLinear and DequantizeLinear around its operators.

Runtimes replace an operator between the two by one that computes in int8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from . import weights
from .graph import LAYERS, consumers

LEVELS = 255  # of uint8, beside 0


def activations(model: onnx.ModelProto) -> list[str]:
    """The tensors of a network to quantize, in order.

    What goes into a convolution or a linear layer, what comes out of a convolution, and the
    operands and result of an addition of two maps; behind the ReLU where one follows directly.
    """
    graph = model.graph
    users = consumers(model)
    computed = {graph.input[0].name}
    chosen, skipped = set(), {output.name for output in graph.output}
    for node in graph.node:
        if node.op_type in LAYERS:
            chosen.add(node.input[0])
        if node.op_type == "Conv":
            chosen.add(node.output[0])
        if node.op_type == "Add" and all(name in computed - skipped for name in node.input):
            chosen.update((*node.input, *node.output))
        if node.op_type == "Gemm":
            skipped.update(node.output)
        if node.op_type != "Constant":
            computed.update(node.output)
    for name in [*chosen]:
        following = users.get(name, [])
        if len(following) == 1 and following[0].op_type == "Relu":
            chosen.remove(name)
            chosen.add(following[0].output[0])
    ordered = [graph.input[0].name, *(name for node in graph.node for name in node.output)]
    return [name for name in ordered if name in chosen - skipped]


def scale_and_zero(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """Scale and zero point of activations from `low` to `high`, which are stretched to hold 0.

    scale = (high - low) / 255, in float64 and rounded to float32 (1 for an empty range);
    zero = rint(-low / scale), in float64. ONNX then makes q = clip(rint(x / scale) + zero, 0, 255)
    of x, rounding half to even, and (q - zero) * scale of q.
    """
    low, high = min(float(low), 0.0), max(float(high), 0.0)
    scale = np.float32((high - low) / LEVELS)
    if not scale > np.finfo(np.float32).tiny:
        return np.float32(1), np.uint8(0)
    return scale, np.uint8(np.clip(np.rint(-low / float(scale)), 0, LEVELS))


def to_qdq(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    per_channel: bool = True,
    pairs: bool = True,
) -> onnx.ModelProto:
    """A copy of a float network in deploy form that computes in int8.

    Its logits are those of the float network with every tensor x of `ranges` replaced by
    (clip(rint(x / scale) + zero, 0, 255) - zero) * scale, see `scale_and_zero`, and the weights of
    every convolution and linear layer by `weights.quantize(...).weights`, but for rounding to
    int32: a bias behind a quantized input becomes a multiple of (input's scale * weights' scale).
    Where such a bias would not fit int32, the weights' scale is raised: to |bias| / (2^30 * input's
    scale), which matters to channels whose weights are all next to 0.

    Args:
        model: as `onnx_graph.to_onnx` makes them, of opset 13 at least.
        ranges: tensor -> its lowest and highest value; other tensors stay float, so that {} gives
            a network with int8 weights alone. `activations` lists those that should be there.
        per_channel, pairs: see `weights.quantize`.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    steps = {name: scale_and_zero(*bounds) for name, bounds in ranges.items()}
    nodes: list[NodeProto] = []

    def constant(name: str, value: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def dequantize(name: str, inputs: Sequence[str], **attributes) -> str:
        nodes.append(helper.make_node("DequantizeLinear", inputs, [name], name, **attributes))
        return name

    def replace(name: str, values: np.ndarray, scale: np.ndarray) -> str:
        """An initializer by integers and their scale."""
        graph.initializer.remove(initializers.pop(name))
        inputs = [
            constant(f"{name}.{values.dtype}", values),
            constant(f"{name}.scale", scale),
            constant(f"{name}.zero", np.zeros(scale.shape, values.dtype)),
        ]
        return dequantize(f"{name}.dequantized", inputs, **({"axis": 0} if scale.ndim else {}))

    def activation(name: str) -> None:
        scale, zero = steps[name]
        own = [constant(f"{name}.scale", scale), constant(f"{name}.zero", zero)]
        q = f"{name}.quantized"
        nodes.append(helper.make_node("QuantizeLinear", [name, *own], [q], q))
        dequantize(f"{name}.dequantized", [q, *own])

    def layer(node: NodeProto) -> list[str]:
        """The weights of a convolution or linear layer; returns its inputs."""
        x, weight, *bias = node.input
        int8 = int8_weights(node, values, ranges, per_channel, pairs)
        inputs = [x, replace(weight, *int8)]
        if bias and x in steps:
            scale = steps[x][0] * int8.scale  # float32
            integers = np.rint(values[bias[0]] / scale.astype(np.float64)).astype(np.int32)
            bias = [replace(bias[0], integers, scale)]
        return [*inputs, *bias]

    if graph.input[0].name in steps:
        activation(graph.input[0].name)
    for node in [*graph.node]:
        inputs = layer(node) if node.op_type in LAYERS else node.input
        node.input[:] = [f"{name}.dequantized" if name in steps else name for name in inputs]
        nodes.append(node)
        for name in node.output:
            if name in steps:
                activation(name)
    del graph.node[:]
    graph.node.extend(nodes)
    return quantized


def int8_weights(
    node: NodeProto,
    values: Mapping[str, np.ndarray],
    ranges: Mapping[str, tuple[float, float]],
    per_channel: bool,
    pairs: bool,
) -> weights.Int8:
    """The weights of a convolution or linear layer, as `to_qdq` rounds them.

    `values` are the network's initializers.
    """
    x, weight, *bias = node.input
    at_least = 0.0
    if bias and x in ranges:
        step = float(scale_and_zero(*ranges[x])[0])
        at_least = np.abs(values[bias[0]].astype(np.float64)) / (2.0**30 * step)
    return weights.quantize(values[weight], per_channel, pairs, at_least)
