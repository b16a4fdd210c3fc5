"""Read, change and run a float ONNX network made by `onnx_graph.to_onnx`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper
from tqdm import tqdm

from deployment import onnx_runtime

LAYERS = ("Conv", "Gemm")  # the operators with weights
BATCH = 8  # batch size where all feature maps of a network are kept


def consumers(model: onnx.ModelProto) -> dict[str, list[NodeProto]]:
    """Return tensor -> the nodes that read it."""
    users: dict[str, list[NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    return users


def layers(model: onnx.ModelProto) -> list[NodeProto]:
    """Return the convolutions and linear layers in order."""
    return [node for node in model.graph.node if node.op_type in LAYERS]


def group(node: NodeProto) -> int:
    """Return the number of groups of a convolution; 1 for a linear layer."""
    return next((a.i for a in node.attribute if a.name == "group"), 1)


def weights(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Return all initializers as float32 arrays."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def with_weights(model: onnx.ModelProto, changed: dict[str, np.ndarray]) -> onnx.ModelProto:
    """Return a copy of the network with changed initializers, rounded to float32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in changed:
            value = np.ascontiguousarray(changed[tensor.name], np.float32)
            tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))
    return copy


def for_batch(model: onnx.ModelProto, size: int | str) -> onnx.ModelProto:
    """Return a copy of the network that takes a batch size, or any if `size` is "batch"."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for value in (*copy.graph.input, *copy.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        if isinstance(size, str):
            dimension.dim_param = size
        else:
            dimension.dim_value = size
    return copy


def run(
    model: onnx.ModelProto,
    images: np.ndarray,
    names: Sequence[str] | None = None,
    description: str | None = None,
) -> Iterator[list[np.ndarray]]:
    """Yield the float tensors `names` (default: the logits) of each batch of `BATCH` images.

    With a `description`, a progress bar is shown on a terminal.
    """
    if names is not None:
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        del copy.graph.output[:]
        for name in names:
            value = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
            copy.graph.output.append(value)
        model = copy
    session = onnx_runtime.session(model.SerializeToString(), spin=False)
    entry = session.get_inputs()[0].name
    starts = range(0, len(images), BATCH)
    disable = None if description else True  # None disables the bar where there is no terminal
    for start in tqdm(starts, desc=description, leave=False, disable=disable):
        yield session.run(None, {entry: images[start : start + BATCH]})


def logits(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    """Return the logits [N, classes] of images [N, C, H, W]."""
    return np.concatenate([batch for (batch,) in run(model, images)])


def sqnr(signal: np.ndarray, quantized: np.ndarray) -> float:
    """Return the signal-to-quantization-noise ratio, 10 log10(sum x^2 / sum (q - x)^2), in dB."""
    return decibels(*powers(signal, quantized))


def powers(signal: np.ndarray, quantized: np.ndarray) -> np.ndarray:
    """Return the sums of squares of the signal and of the noise, float64 [2]."""
    signal, quantized = signal.astype(np.float64), quantized.astype(np.float64)
    return np.array([np.square(signal).sum(), np.square(quantized - signal).sum()])


def decibels(signal: float, noise: float) -> float:
    """Return 10 log10(signal / noise), which is infinite without noise."""
    if noise == 0:
        return float("inf")
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(np.float64(signal) / noise))
