"""Reading and changing a float ONNX network, as `onnx_graph.to_onnx` makes them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from tqdm import tqdm

from . import runtime

LAYERS = ("Conv", "Gemm")  # the operators with weights
BATCH = 8  # images at once where all maps of a network are looked at


def consumers(model: onnx.ModelProto) -> dict[str, list[NodeProto]]:
    """Tensor -> the nodes that read it."""
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def layers(model: onnx.ModelProto) -> list[NodeProto]:
    """The convolutions and linear layers, in order."""
    return [node for node in model.graph.node if node.op_type in LAYERS]


def group(node: NodeProto) -> int:
    """Of a convolution; 1 for a linear layer."""
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """All initializers, as float32 arrays."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def with_weights(model: onnx.ModelProto, changed: dict[str, np.ndarray]) -> onnx.ModelProto:
    """A copy with other values in some initializers, rounded to float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in changed:
            value = np.ascontiguousarray(changed[tensor.name], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return copy


def for_any_batch(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that takes any number of images at once."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    return copy


def run(
    model: onnx.ModelProto,
    images: np.ndarray,
    names: Sequence[str] | None = None,
    description: str | None = None,
) -> Iterator[list[np.ndarray]]:
    """The float tensors `names` (default: the logits), for `BATCH` images at a time.

    `description` is for a progress bar.
    """
    if names is not None:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.output[:]
        for name in names:
            value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            copy.graph.output.append(value)
        model = copy
    session = runtime.session(model.SerializeToString(), spin=False)
    entry = session.get_inputs()[0].name
    starts = range(0, len(images), BATCH)
    disable = None if description else True  # None: where there is no terminal
    for start in tqdm(starts, desc=description, leave=False, disable=disable):
        yield session.run(None, {entry: images[start : start + BATCH]})


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """[N, 3, H, W] -> [N, classes]."""
    return np.concatenate([batch for (batch,) in run(model, images)])


def sqnr(signal: np.ndarray, quantized: np.ndarray) -> float:
    """Signal to quantization noise, 10 log10(sum x^2 / sum (q - x)^2), in dB."""
    return decibels(*powers(signal, quantized))


def powers(signal: np.ndarray, quantized: np.ndarray) -> np.ndarray:
    """The sums of squares of the signal and of the noise, float64 [2]."""
    signal, quantized = signal.astype(np.float64), quantized.astype(np.float64)
    return np.array([np.square(signal).sum(), np.square(quantized - signal).sum()])


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise); infinite without noise."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.float64(signal) / noise))
