"""Turn a float ONNX network into an int8 network in QDQ format.

QuantizeLinear and DequantizeLinear nodes surround its operators; runtimes replace an operator
between them by one that computes in int8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from . import weights
from .graph import LAYERS, consumers

LEVELS = 255  # steps of uint8 above 0


def activations(model: onnx.ModelProto) -> list[str]:
    """Return the tensors of a network to quantize, in order.

    These are inputs of convolutions and linear layers, outputs of convolutions, and operands and
    results of additions of two feature maps; where a ReLU follows directly, its output instead.
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
    """Return scale and zero point of activations from `low` to `high`, extended to include 0.

    scale = (high - low) / 255 in float64, rounded to float32 (1 for an empty range), and
    zero = rint(-low / scale) in float64. ONNX quantizes x to q = clip(rint(x / scale) + zero, 0,
    255), rounding half to even, and dequantizes q to (q - zero) * scale.
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
    """Return a copy of a float network in deploy form that computes in int8.

    Its logits are those of the float network with every tensor x of `ranges` replaced by
    (clip(rint(x / scale) + zero, 0, 255) - zero) * scale, see `scale_and_zero`, and the weights of
    every convolution and linear layer by `weights.quantize(...).weights`, but for rounding to
    int32: a bias behind a quantized input becomes a multiple of (input's scale * weights' scale).
    Where such a bias would not fit int32, the weights' scale is raised: to |bias| / (2^30 * input's
    scale), which matters to channels whose weights are all next to 0.

    Args:
        model: network made by `onnx_graph.to_onnx` with opset 13 or higher.
        ranges: tensor -> its lowest and highest value; `activations` lists the tensors to quantize.
            Other tensors stay float, so that {} quantizes the weights only.
        per_channel, pairs: how weights are rounded, see `weights.quantize`.
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
        """Replace an initializer by integers and their scale; return the dequantized tensor."""
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
        """Quantize the weights of a convolution or linear layer and return its inputs."""
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
    """Return the weights of a convolution or linear layer as `to_qdq` rounds them.

    `values` are the network's initializers.
    """
    x, weight, *bias = node.input
    at_least = 0.0
    if bias and x in ranges:
        step = float(scale_and_zero(*ranges[x])[0])
        at_least = np.abs(values[bias[0]].astype(np.float64)) / (2.0**30 * step)
    return weights.quantize(values[weight], per_channel, pairs, at_least)
