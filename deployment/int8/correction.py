"""Correction: restore the mean and the deviation of each channel, layer by layer.

Rounded weights and clipped activations shift the mean of each channel and shrink its deviation, and
both accumulate from layer to layer. In the network's order, each layer's bias is changed so that
the mean of its output over the calibration images, computed from the quantized network's own input,
equals the float network's; and, where each channel's weights have a scale of their own, they are
multiplied so that its standard deviation does too. That changes the scales alone: the integers stay
the same.

Source of the means: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias
Correction, ICCV 2019 (arXiv 1906.04721), section 4.2, in its empirical form.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from tqdm import tqdm

from deployment import onnx_runtime

from . import graph, qdq
from .dialects import Grid, Scheme

_DEFAULT = Scheme()
_LARGEST_FACTOR = 1.25  # of a channel's weights, whose deviation may be a matter of few images


class Corrected(NamedTuple):
    """The float network with corrected layers, and the quantized network's logits [N, classes]."""

    model: onnx.ModelProto
    logits: np.ndarray


class Moments(NamedTuple):
    """Mean and standard deviation of each channel over images and positions, float64 [C]."""

    mean: np.ndarray
    deviation: np.ndarray


def moments(
    model: onnx.ModelProto, images: np.ndarray, names: Sequence[str] | None = None
) -> dict[str, Moments]:
    """Return the moments of the tensors `names`, by default the outputs of all layers."""
    names = names or [node.output[0] for node in graph.layers(model)]
    sums: dict[str, np.ndarray] = {}  # of the values and of their squares, [2, C]
    for batch in graph.run(model, images, names, "means and deviations"):
        for name, value in zip(names, batch, strict=True):
            sums[name] = sums.get(name, 0) + _powers(value) * len(value)
    return {name: _moments(total / len(images)) for name, total in sums.items()}


def correct(
    model: onnx.ModelProto,
    ranges: Mapping[str, tuple[float, float]],
    images: np.ndarray,
    target: Mapping[str, Moments],
    scheme: Scheme = _DEFAULT,
) -> Corrected:
    """Correct the layers of a float network for quantization by `qdq.to_qdq`.

    The feature maps of all images between two layers are held in memory.

    Args:
        model, ranges, scheme: arguments of `qdq.to_qdq`.
        images: calibration images, float32 [N, C, H, W], normalized.
        target: `moments` of the float network.
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
    for node in tqdm(model.graph.node, desc="correction", leave=False, disable=None):
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
            factor, shift = _factor_and_shift(
                target[name], _moments(_powers(tensors[name])), scheme
            )
            changed |= _corrected(node, weights, factor, shift)
            shape = (-1, *[1] * (tensors[name].ndim - 2))
            tensors[name] *= factor.astype(np.float32).reshape(shape)
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
    target: Mapping[str, Moments],
    scheme: Scheme,
) -> onnx.ModelProto:
    """Correct one layer as `correct` does, for a network in which only it is int8."""
    if len(node.input) < 3:
        return model
    (name,) = node.output
    found = moments(qdq.to_qdq(model, ranges, scheme), images, [name])[name]
    factor, shift = _factor_and_shift(target[name], found, scheme)
    return graph.with_weights(model, _corrected(node, graph.weights(model), factor, shift))


def _factor_and_shift(
    target: Moments, found: Moments, scheme: Scheme
) -> tuple[np.ndarray, np.ndarray]:
    """Return what to multiply a layer's output by and to add then, float64 [C] each."""
    factor = np.ones_like(found.mean)
    if scheme.per_channel:
        varies = (found.deviation > 0) & (target.deviation > 0)
        np.divide(target.deviation, found.deviation, out=factor, where=varies)
        factor = np.clip(factor, 1 / _LARGEST_FACTOR, _LARGEST_FACTOR)
    return factor, target.mean - factor * found.mean


def _corrected(
    node: NodeProto, weights: Mapping[str, np.ndarray], factor: np.ndarray, shift: np.ndarray
) -> dict[str, np.ndarray]:
    """Return the weights and the bias of a layer whose output is multiplied and shifted."""
    _, weight, bias = node.input
    along_channels = factor.reshape(-1, *[1] * (weights[weight].ndim - 1))
    return {
        weight: (weights[weight] * along_channels).astype(np.float32),
        bias: (weights[bias] * factor + shift).astype(np.float32),
    }


def _powers(x: np.ndarray) -> np.ndarray:
    """Return the mean of the values of each channel and that of their squares, float64 [2, C]."""
    axes = (0, *range(2, x.ndim))
    return np.stack([x.mean(axes, dtype=np.float64), np.square(x).mean(axes, dtype=np.float64)])


def _moments(powers: np.ndarray) -> Moments:
    mean, square = powers
    return Moments(mean, np.sqrt(np.maximum(square - mean**2, 0)))


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
