"""Turn a float ONNX network into an int8 network in QDQ format.

QuantizeLinear and DequantizeLinear nodes surround its operators; runtimes replace an operator
between them by one that computes in int8.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

from . import weights
from .dialects import Dialect, Scheme
from .graph import LAYERS, consumers, layers

_DEFAULT = Scheme()


def activations(model: onnx.ModelProto, scheme: Scheme = _DEFAULT) -> list[str]:
    """Return the tensors of a network to quantize, in order.

    These are inputs of convolutions and linear layers, and what `scheme.dialect` adds: outputs of
    convolutions, operands and results of additions of two feature maps, inputs of poolings. Where a
    ReLU follows directly, its output is quantized instead.
    """
    graph, dialect = model.graph, scheme.dialect
    users = consumers(model)
    computed = {graph.input[0].name: None}
    chosen, pooled = set(), []
    skipped = {output.name for output in graph.output}
    for node in graph.node:
        if node.op_type in LAYERS and node.name not in scheme.in_float:
            chosen.add(node.input[0])
            if node.op_type == "Conv" and dialect.behind_layers:
                chosen.add(node.output[0])
        if node.op_type == "Add" and all(name in computed.keys() - skipped for name in node.input):
            chosen.update(_around_addition(node, computed, users, dialect))
        if node.op_type == "GlobalAveragePool" and dialect.before_pools:
            pooled.append(node)
        if node.op_type == "Gemm":
            skipped.update(node.output)
        if node.op_type != "Constant":
            computed.update(dict.fromkeys(node.output, node))
    if dialect.before_flatten:
        chosen = {_before_flatten(name, computed) for name in chosen}
    chosen.update(node.input[0] for node in pooled if node.output[0] in chosen)
    for name in [*chosen]:
        following = users.get(name, [])
        if len(following) == 1 and following[0].op_type == "Relu":
            chosen.remove(name)
            chosen.add(following[0].output[0])
    found, chosen = None, chosen - skipped
    while found != chosen:  # a tensor less may leave the operator before it in float
        found = chosen
        in_float = float_readers(model, found, scheme)
        chosen = {
            name
            for name in found
            if not in_float.issuperset(node.name for node in users.get(name, []))
        }
    ordered = [graph.input[0].name, *(name for node in graph.node for name in node.output)]
    return [name for name in ordered if name in chosen]


def float_readers(
    model: onnx.ModelProto, quantized: Collection[str], scheme: Scheme
) -> frozenset[str]:
    """Return the names of the nodes that read their inputs as they are, also `quantized` ones.

    The layers in float do, and so do operators without weights that the runtime computes in int8
    only if their results are quantized, where these are not: see `Dialect.whole`.
    """
    names, users = {*scheme.in_float}, consumers(model)
    stays_float: dict[str, bool] = {}
    for node in reversed(model.graph.node):
        stays_float[node.name] = any(
            reader is None or reader.op_type in LAYERS or stays_float[reader.name]
            for name in node.output
            for reader in users.get(name, [None])
            if name not in quantized or (reader is not None and reader.name in names)
        )
        if node.op_type == "GlobalAveragePool":
            is_partial = scheme.dialect.whole != "nothing" and node.output[0] not in quantized
        else:
            is_partial = scheme.dialect.whole == "operators" and stays_float[node.name]
        if is_partial and node.op_type not in (*LAYERS, "Flatten"):  # which only moves values
            names.add(node.name)
    return frozenset(names)


def _around_addition(
    node: NodeProto,
    computed: Mapping[str, NodeProto | None],
    users: Mapping[str, list[NodeProto]],
    dialect: Dialect,
) -> list[str]:
    """Return the tensors to quantize around an addition of two feature maps."""
    if not dialect.skip_alone:
        return [*node.input, *node.output]
    order = [*computed]
    fused = [
        name
        for name in node.input
        if (source := computed[name]) is not None
        and source.op_type == "Conv"
        and len(users[name]) == 1
    ]
    if not fused:  # an addition of its own is computed in float
        return []
    last = max(fused, key=order.index)
    return [name for name in node.input if name != last]


def _before_flatten(name: str, computed: Mapping[str, NodeProto | None]) -> str:
    """Return the input of the Flatten whose output is `name`; `name` if there is none."""
    source = computed[name]
    return source.input[0] if source is not None and source.op_type == "Flatten" else name


def to_qdq(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    scheme: Scheme = _DEFAULT,
) -> onnx.ModelProto:
    """Return a copy of a float network in deploy form that computes in int8.

    Its logits are those of the float network with every tensor x of `ranges` replaced by
    (clip(rint(x / scale) + zero, lowest, highest) - zero) * scale, see `Grid.scale_and_zero`, and
    the weights of every convolution and linear layer by `weights.quantize(...).weights`, but for
    rounding to int32: a bias behind a quantized input becomes a multiple of (input's scale *
    weights' scale). Where such a bias would not fit int32, the weights' scale is raised: to |bias|
    / (2^30 * input's scale), which matters to channels whose weights are all next to 0. The layers
    of `scheme.in_float` read x as it is; `float_weights` keep their weights.

    Args:
        model: network made by `onnx_graph.to_onnx` with opset 13 or higher.
        ranges: tensor -> its lowest and highest value; `activations` lists the tensors to quantize.
            Other tensors stay float, so that {} quantizes the weights only.
        scheme: how to quantize.
    """
    quantized = onnx.ModelProto()
    quantized.CopyFrom(model)
    graph = quantized.graph
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    grid, bounds = scheme.dialect.grid, input_ranges(model, ranges, scheme)
    kept, in_float = float_weights(model, scheme), float_readers(model, ranges, scheme)
    steps = {name: grid.scale_and_zero(*ends) for name, ends in ranges.items()}
    nodes: list[NodeProto] = []

    def constant(name: str, value: np.ndarray | np.generic) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def dequantize(name: str, inputs: Sequence[str], **attributes: Any) -> str:
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
        input_range = bounds.get(node.name)
        int8 = int8_weights(node, values, input_range, scheme)
        inputs = [x, replace(weight, *int8)]
        if bias and input_range is not None and scheme.dialect.int32_biases:
            scale = grid.scale_and_zero(*input_range)[0] * int8.scale  # float32
            integers = np.rint(values[bias[0]] / scale.astype(np.float64)).astype(np.int32)
            bias = [replace(bias[0], integers, scale)]
        return [*inputs, *bias]

    if graph.input[0].name in steps:
        activation(graph.input[0].name)
    for node in [*graph.node]:
        if node.name not in in_float:
            inputs = layer(node) if node.op_type in LAYERS and node.name not in kept else node.input
            node.input[:] = [f"{name}.dequantized" if name in steps else name for name in inputs]
        nodes.append(node)
        for name in node.output:
            if name in steps:
                activation(name)
    del graph.node[:]
    graph.node.extend(nodes)
    return quantized


def quantized_input(model: onnx.ModelProto, node: NodeProto, ranges: Collection[str]) -> str | None:
    """Return the quantized tensor that a layer reads, maybe through a Flatten, or None."""
    flattened = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Flatten"}
    names = (node.input[0], flattened.get(node.input[0]))
    return next((name for name in names if name in ranges), None)


def input_ranges(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]], scheme: Scheme
) -> dict[str, tuple[float, float]]:
    """Return the range of each int8 layer's input, by the layer's name, where it is quantized."""
    kept = float_weights(model, scheme)
    inputs = {
        node.name: quantized_input(model, node, ranges)
        for node in layers(model)
        if node.name not in kept
    }
    return {name: ranges[x] for name, x in inputs.items() if x is not None}


def float_weights(model: onnx.ModelProto, scheme: Scheme) -> frozenset[str]:
    """Return the names of the layers whose weights stay float.

    These are the layers in float and, where the runtime computes a convolution in int8 only if its
    output is int8, the convolutions that layers in float alone read.
    """
    kept = {*scheme.in_float}
    users = consumers(model)
    for node in layers(model) if scheme.dialect.behind_layers and kept else []:
        readers = users.get(node.output[0], [])
        if len(readers) == 1 and readers[0].op_type == "Relu":
            readers = users.get(readers[0].output[0], [])
        if readers and all(reader.name in scheme.in_float for reader in readers):
            kept.add(node.name)
    return frozenset(kept)


def with_flattened(
    model: onnx.ModelProto, ranges: Mapping[str, tuple[float, float]]
) -> dict[str, tuple[float, float]]:
    """Return the ranges, and each Flatten's input with the range of its output."""
    flattened = {n.input[0]: n.output[0] for n in model.graph.node if n.op_type == "Flatten"}
    return {**{x: ranges[y] for x, y in flattened.items() if y in ranges}, **ranges}


def int8_weights(
    node: NodeProto,
    values: Mapping[str, np.ndarray],
    input_range: tuple[float, float] | None,
    scheme: Scheme,
) -> weights.Int8:
    """Return the weights of a convolution or linear layer as `to_qdq` rounds them.

    Args:
        values: initializers of the network.
        input_range: of `input_ranges`; None if the input stays float.
    """
    _, weight, *bias = node.input
    at_least: np.ndarray | float = 0.0
    if bias and input_range is not None and scheme.dialect.int32_biases:
        step = float(scheme.dialect.grid.scale_and_zero(*input_range)[0])
        at_least = np.abs(values[bias[0]].astype(np.float64)) / (2.0**30 * step)
    return weights.quantize(values[weight], scheme.per_channel, scheme.limited, at_least)
