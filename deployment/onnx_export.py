"""Export a network as an ONNX file, and load one under onnxruntime."""

from __future__ import annotations

import json
from collections import Counter
from os import PathLike
from typing import Any, NamedTuple

from models.equivalence import TOLERANCE

import megengine.module as M
import numpy as np
import onnx

from data.transforms import Preprocessing

from . import features as maps
from . import half as half_precision
from . import onnx_runtime
from .input_format import adapt, describe
from .onnx_graph import to_onnx
from .tracing import ExportError
from .verification import Runner, check_sizes, photographs, random_pixels, write_verified


class Exported(NamedTuple):
    """Result of an export; `relative_error` is the file's error against the live network."""

    relative_error: float
    parameters: int  # numbers in the initializers
    initializers: int
    operators: dict[str, int]  # kind -> count; constants are not counted


def export_onnx(
    model: M.Module,
    path: str | PathLike,
    preprocessing: Preprocessing,
    *,
    file_input: Preprocessing | None = None,
    size: int | tuple[int, int] = 224,
    opset: int = 17,
    batch: int | str = "batch",
    input_name: str = "input",
    output_name: str = "logits",
    metadata: dict[str, Any] | None = None,
    features: bool = False,
    free_size: bool = False,
    half: bool = False,
) -> Exported:
    """Write `model` in its current form and in evaluation mode as an ONNX file.

    Before the file gets its name, onnxruntime runs it, at two batch sizes if the batch size is
    free and at two sizes if the size is, and its outputs are compared with the live network's.

    Args:
        model: network from images [N, C, H, W] to logits [N, classes]; its mode is kept. Fuse it
            with `models.to_deploy` first to export the deploy form.
        path: file to write; an existing file is replaced.
        preprocessing: preprocessing of the images that `model` takes.
        file_input: preprocessing of the images that the file takes (default: `preprocessing`);
            another one needs a fused model, see `input_format`.
        size: side of the input in pixels, or (height, width).
        opset: version of ONNX's operator set, at least 11.
        batch: batch size, or a name of the dimension for any batch size.
        input_name, output_name: names of the input float32 [N, C, H, W] and of the logits.
        metadata: values to write into the file beside the preprocessing, as JSON unless strings.
        features: write the four feature maps as outputs instead, called `features.NAMES`.
        free_size: let the file take images of any height and width; `size` is its usual one.
        half: compute in float16, within a relative error of `half.TOLERANCE` on photographs.

    Raises ExportError when an operator has no handler or the logits differ, and UserError when the
    file cannot be written; no file is left behind in either case.
    """
    size = (size, size) if isinstance(size, int) else size
    file_input = file_input or preprocessing
    training = model.training
    model.eval()
    try:
        network = maps.backbone(model) if features else model
        adapted = adapt(network, preprocessing, file_input)
        names = maps.NAMES if features else output_name
        proto = to_onnx(adapted, size, opset, batch, input_name, names, free_size)
        proto = half_precision.to_half(proto) if half else proto
        proto.producer_name = "reparam-megengine"
        properties = {**(metadata or {}), "preprocessing": describe(file_input, size)}
        onnx.helper.set_model_props(proto, {key: _text(value) for key, value in properties.items()})
        graph = proto.graph
        operators = Counter(node.op_type for node in graph.node if node.op_type != "Constant")
        numbers = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
        initializers = len(graph.initializer)
        content = proto.SerializeToString()
        del proto, graph  # of a large network there are many copies at this point
        _check(content)
        sizes = check_sizes(size, free_size, (batch,) if isinstance(batch, int) else (1, 3))
        # random images would tell little: their logits are small, beside which errors look large
        how = (half_precision.TOLERANCE, photographs) if half else (TOLERANCE, random_pixels)
        check = write_verified(path, content, load, network, preprocessing, file_input, sizes, *how)
    finally:
        model.train(training)
    return Exported(check.relative_error, numbers, initializers, dict(operators))


def _check(content: bytes) -> None:
    try:
        onnx.checker.check_model(content, full_check=True)  # with strict shape inference
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's checker does not accept the model: {error}") from None


def load(path: str | PathLike) -> Runner:
    """Return a function that runs an ONNX file with one input in onnxruntime."""
    session = onnx_runtime.session(path)
    name = session.get_inputs()[0].name

    def run(images: np.ndarray) -> np.ndarray | list[np.ndarray]:
        outputs = session.run(None, {name: images})
        return outputs[0] if len(outputs) == 1 else outputs

    return run


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
