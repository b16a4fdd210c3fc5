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

from . import graph, qdq, runtime


class Corrected(NamedTuple):
    """The float network with corrected biases, and the quantized network's logits [N, classes]."""

    model: onnx.ModelProto
    logits: np.ndarray


def means(model: onnx.ModelProto, images: np.ndarray) -> dict[str, np.ndarray]:
    """Return each layer's output tensor -> its mean over images and positions, float64 [C]."""
    names = [node.output[0] for node in graph.layers(model)]
    sums = dict.fromkeys(names, 0)
    for batch in graph.run(model, images, names, "means"):
        for name, value in zip(names, batch, strict=True):
            sums[name] = sums[name] + _mean(value) * len(value)
    return {name: total / len(images) for name, total in sums.items()}


def correct(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    images: np.ndarray,
    target: Mapping[str, np.ndarray],
    per_channel: bool = True,
    pairs: bool = True,
) -> Corrected:
    """Correct the biases of a float network for quantization by `qdq.to_qdq`.

    The feature maps of all images between two layers are held in memory.

    Args:
        model, ranges, per_channel, pairs: arguments of `qdq.to_qdq`.
        images: calibration images, float32 [N, 3, H, W], normalized.
        target: `means` of the float network.
    """
    weights = graph.weights(model)
    changed = {}
    tensors = {model.graph.input[0].name: images}
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers[model.graph.output[0].name] = 1
    _fake_quantize(tensors, model.graph.input[0].name, ranges)
    for node in tqdm(model.graph.node, desc="bias correction", leave=False, disable=None):
        if node.op_type == "Constant":
            weights[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
            continue
        constants = {name: weights[name] for name in node.input if name in weights}
        (name,) = node.output
        if node.op_type in graph.LAYERS:
            int8 = qdq.int8_weights(node, weights, ranges, per_channel, pairs)
            constants[node.input[1]] = int8.weights
        tensors[name] = _run(node, model, tensors, constants)
        if node.op_type in graph.LAYERS and len(node.input) > 2:
            shift = target[name] - _mean(tensors[name])
            changed[node.input[2]] = weights[node.input[2]] + shift
            shape = (-1, *[1] * (tensors[name].ndim - 2))
            tensors[name] += shift.astype(np.float32).reshape(shape)
        _fake_quantize(tensors, name, ranges)
        for read in node.input:
            readers[read] -= 1
            if readers[read] == 0:
                tensors.pop(read, None)
    return Corrected(graph.with_weights(model, changed), tensors[model.graph.output[0].name])


def _mean(x: np.ndarray) -> np.ndarray:
    return x.mean((0, *range(2, x.ndim)), dtype=np.float64)


def _fake_quantize(tensors: dict[str, np.ndarray], name: str, ranges: Mapping) -> None:
    """Replace a quantized tensor x by (clip(rint(x / scale) + zero, 0, 255) - zero) * scale."""
    if name in ranges:
        scale, zero = qdq.scale_and_zero(*ranges[name])
        x = tensors[name] / scale
        np.rint(x, out=x)
        np.clip(x, -float(zero), qdq.LEVELS - float(zero), out=x)
        x *= scale
        tensors[name] = x


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
    session = runtime.session(alone.SerializeToString(), spin=False)
    total = len(tensors[inputs[0]])
    batches = [
        session.run(None, {name: tensors[name][i : i + graph.BATCH] for name in inputs})[0]
        for i in range(0, total, graph.BATCH)
    ]
    return np.concatenate(batches)
