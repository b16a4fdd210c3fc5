"""Writing a network as an ONNX file, and running one."""

from __future__ import annotations

import json
from collections import Counter
from os import PathLike
from typing import Any, NamedTuple

import megengine.module as M
import numpy as np
import onnx
import onnxruntime

from data.transforms import Preprocessing

from .input_format import adapt, note
from .onnx_graph import to_onnx
from .tracing import ExportError
from .verification import Runner, write_verified


class Exported(NamedTuple):
    """What was written; relative_error: of the file against the live network."""

    relative_error: float
    parameters: int  # numbers in the initializers
    initializers: int
    operators: dict[str, int]  # kind -> count; constants are not counted


def export_onnx(
    model: M.Module,
    path: str | PathLike,
    preprocessing: Preprocessing,
    *,
    takes: Preprocessing | None = None,
    size: int | tuple[int, int] = 224,
    opset: int = 17,
    batch: int | str = "batch",
    input_name: str = "input",
    output_name: str = "logits",
    metadata: dict[str, Any] | None = None,
) -> Exported:
    """Write `model`, in the form it is in and in evaluation mode, as ONNX.

    The file is run by onnxruntime and compared with the live network, at two batch sizes where it
    takes any; only then does it get its name.

    Args:
        model: [N, 3, H, W] -> logits [N, classes]; `models.to_deploy` fuses. Its mode is kept.
        path: the file to write; a file that is there is replaced.
        preprocessing: how images go into `model`.
        takes: how they go into the file, if otherwise; see `input_format`. The model must be fused.
        size: side of the input in pixels, or (height, width).
        opset: of ONNX, from 11 on.
        batch: number of images that go in at once, or a name for any number.
        input_name, output_name: of the input float32 [N, 3, H, W] and of the logits.
        metadata: goes into the file, beside the preprocessing; what is no string as JSON.

    Raises ExportError when the network has an operator without a handler or the file does not
    compute what it does, and UserError when it cannot be written; nothing is left behind then.
    """
    size = (size, size) if isinstance(size, int) else size
    takes = takes or preprocessing
    training = model.training
    model.eval()
    try:
        adapted = adapt(model, preprocessing, takes)
        proto = to_onnx(adapted, size, opset, batch, input_name, output_name)
        proto.producer_name = "reparam-megengine"
        properties = {**(metadata or {}), "preprocessing": note(takes, size)}
        onnx.helper.set_model_props(proto, {key: _text(value) for key, value in properties.items()})
        graph = proto.graph
        operators = Counter(node.op_type for node in graph.node if node.op_type != "Constant")
        numbers = sum(int(np.prod(tensor.dims)) for tensor in graph.initializer)
        initializers = len(graph.initializer)
        content = proto.SerializeToString()
        del proto, graph  # large networks have many copies here
        _check(content)
        batches = (batch,) if isinstance(batch, int) else (1, 3)
        proof = write_verified(path, content, load, model, preprocessing, takes, size, batches)
    finally:
        model.train(training)
    return Exported(proof.relative_error, numbers, initializers, dict(operators))


def _check(content: bytes) -> None:
    try:
        onnx.checker.check_model(content, full_check=True)  # with strict shape inference
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's checker does not accept the model: {error}") from None


def load(path: str | PathLike) -> Runner:
    """A function that runs an ONNX file of one input and one output under onnxruntime."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
