"""Writing a network as an ONNX file that has been run before it gets its name."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from os import PathLike
from typing import Any, BinaryIO, NamedTuple

import megengine as mge
import megengine.module as M
import numpy as np
import onnx
import onnxruntime

from data.transforms import Preprocessing
from training.checkpoint import write_atomically

from . import proof
from .onnx_graph import ExportError, to_onnx


class Exported(NamedTuple):
    """What was written.

    parameters: numbers in the initializers; operators: kind -> count; relative_error: of the file
    under onnxruntime against the live network.
    """

    parameters: int
    operators: dict[str, int]
    relative_error: float


def export_onnx(
    model: M.Module,
    path: str | PathLike,
    preprocessing: Preprocessing,
    *,
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
        preprocessing: what the images that go into `model` have gone through.
        size: side of the input in pixels, or (height, width).
        opset: of ONNX, from 11 on.
        batch: number of images that go in at once, or a name for any number.
        input_name, output_name: of the input float32 [N, 3, H, W] and the logits.
        metadata: goes into the file, beside the preprocessing; what is no string as JSON.

    Raises ExportError when the network has an operator without a handler or the file does not
    compute what it does, and UserError when it cannot be written; nothing is left behind then.
    """
    height, width = (size, size) if isinstance(size, int) else size
    training = model.training
    model.eval()
    try:
        graph = to_onnx(model, (height, width), opset, batch, input_name, output_name)
        graph.producer_name = "reparam-megengine"
        properties = {**(metadata or {}), "preprocessing": asdict(preprocessing)}
        onnx.helper.set_model_props(graph, {k: _text(v) for k, v in properties.items()})

        def live(images: np.ndarray) -> np.ndarray:
            return model(mge.Tensor(images)).numpy()

        def write_and_run(file: BinaryIO) -> None:
            nonlocal result
            file.write(graph.SerializeToString())
            file.flush()
            expects = (preprocessing, preprocessing)
            batches = (batch,) if isinstance(batch, int) else (1, 3)
            result = proof.compare(live, runner(file.name), expects, (height, width), batches)
            if not result.holds:
                raise ExportError(
                    f"{path} was not written: onnxruntime's logits differ from the network's by "
                    f"{result.relative_error:.1e} of the largest and have {result.argmax_agreement:.0%} "
                    "of its best classes; give trained weights, which are less sensitive to rounding"
                )

        result = None
        write_atomically(path, write_and_run)
    finally:
        model.train(training)
    return Exported(
        sum(int(np.prod(tensor.dims)) for tensor in graph.graph.initializer),
        dict(Counter(node.op_type for node in graph.graph.node)),
        result.relative_error,
    )


def runner(path: str | PathLike) -> Callable[[np.ndarray], np.ndarray]:
    """A function that runs an ONNX file of one input: float32 [N, 3, H, W] -> logits."""
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda images: session.run(None, {name: images})[0]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
