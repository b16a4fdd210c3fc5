"""Bias correction: restore the channel means that quantization shifts, layer by layer.

Rounded weights and clipped activations shift the mean of each channel, and the shifts accumulate
from layer to layer. In the network's order, each layer's bias is changed so that the mean of its
output over the calibration images, computed from the quantized network's own input, equals the
float network's.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
2019 (arXiv 1906.04721), section 4.2, in its empirical form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from tqdm import tqdm

from deployment import onnx_runtime

from . import graph, qdq
from .dialects import Grid, Scheme

_DEFAULT = Scheme()


class Corrected(NamedTuple):
    """The float network with corrected biases, and the quantized network's logits [N, classes]."""

    model: onnx.ModelProto
    logits: np.ndarray


def means(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return each layer's output tensor -> its mean over images and positions, float64 [C]."""
    names = [node.output[0] for node in graph.layers(model)]
    sums: dict[str, np.ndarray] = {}
    for batch in graph.run(model, images, names, "means"):
        for name, value in zip(names, batch, strict=True):
            sums[name] = sums.get(name, 0) + _mean(value) * len(value)
    return {name: total / len(images) for name, total in sums.items()}


def correct(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    images: np.ndarray,
    target: Mapping[str, np.ndarray],
    scheme: Scheme = _DEFAULT,
) -> Corrected:
    """Correct the biases of a float network for quantization by `qdq.to_qdq`.

    The feature maps of all images between two layers are held in memory.

    Args:
        model, ranges, scheme: arguments of `qdq.to_qdq`.
        images: calibration images, float32 [N, C, H, W], normalized.
        target: `means` of the float network.
    """
    weights = graph.weights(model)
    changed = {}
    entry, result = model.graph.input[0].name, model.graph.output[0].name
    grid, bounds = scheme.dialect.grid, qdq.input_ranges(model, ranges, scheme)
    kept = qdq.float_weights(model, scheme)
    tensors = {entry: images}
    raw = {}  # of quantized tensors, what nodes read that read float
    left = Counter(name for node in model.graph.node for name in node.input)
    left[result] = 1
    in_float = qdq.float_readers(model, ranges, scheme)
    read_raw = {name for node in model.graph.node if node.name in in_float for name in node.input}

    def quantize(name: str) -> None:
        if name in ranges:
            if name in read_raw:
                raw[name] = tensors[name]
            tensors[name] = _fake_quantize(tensors[name], grid, *ranges[name])

    quantize(entry)
    for node in tqdm(model.graph.node, desc="bias correction", leave=False, disable=None):
        if node.op_type == "Constant":
            weights[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            continue
        constants = {name: weights[name] for name in node.input if name in weights}
        (name,) = node.output
        if node.op_type in graph.LAYERS and node.name not in kept:
            int8 = qdq.int8_weights(node, weights, bounds.get(node.name), scheme)
            constants[node.input[1]] = int8.weights
        given = {**tensors, **raw} if node.name in in_float else tensors
        tensors[name] = _run(node, model, given, constants)
        if node.op_type in graph.LAYERS and len(node.input) > 2:
            shift = target[name] - _mean(tensors[name])
            changed[node.input[2]] = weights[node.input[2]] + shift
            shape = (-1, *[1] * (tensors[name].ndim - 2))
            tensors[name] += shift.astype(np.float32).reshape(shape)
        quantize(name)
        for read in node.input:
            left[read] -= 1
            if left[read] == 0:
                tensors.pop(read, None)
                raw.pop(read, None)
    return Corrected(graph.with_weights(model, changed), tensors[result])


def correct_layer(
    model: onnx.ModelProto,
    node: NodeProto,
    ranges: Mapping[str, tuple[float, float]],
    images: np.ndarray,
    target: Mapping[str, np.ndarray],
    scheme: Scheme,
) -> onnx.ModelProto:
    """Correct the bias of one layer as `correct` does, for a network in which only it is int8."""
    if len(node.input) < 3:
        return model
    (name,), (_, _, shifted) = node.output, node.input
    int8 = qdq.to_qdq(model, ranges, scheme)
    sums = sum(_mean(value) * len(value) for (value,) in graph.run(int8, images, [name]))
    shift = target[name] - sums / len(images)
    return graph.with_weights(model, {shifted: graph.weights(model)[shifted] + shift})


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean((0, *range(2, x.ndim)), dtype=np.float64)


def _fake_quantize(x: np.ndarray, grid: Grid, low: float, high: float) -> np.ndarray:
    """Return (clip(rint(x / scale) + zero, lowest, highest) - zero) * scale."""
    scale, zero = grid.scale_and_zero(low, high)
    x = x / scale
    np.rint(x, out=x)
    np.clip(x, *grid.limits(zero), out=x)
    x *= scale
    return x


def _run(
    node: NodeProto,
    model: onnx.ModelProto,
    tensors: dict[str, np.ndarray],
    constants: dict[str, np.ndarray],
) -> np.ndarray:
    """Return the output of one operator."""
    inputs = [name for name in dict.fromkeys(node.input) if name not in constants]
    value = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in inputs]
    result = helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
    given = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    alone = helper.make_model(
        helper.make_graph([node], "operator", value, [result], given),
        opset_imports=model.opset_import,
        ir_version=model.ir_version,
    )
    session = onnx_runtime.session(alone.SerializeToString(), spin=False)
    total = len(tensors[inputs[0]])
    batches = [
        session.run(None, {name: tensors[name][i : i + graph.BATCH] for name in inputs})[0]
        for i in range(0, total, graph.BATCH)
    ]
    return np.concatenate(batches)
