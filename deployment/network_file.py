"""Open an .onnx or .mge file, of export.py or from elsewhere, under the runtime it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError
from weights import formats

_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
# operators that may stand between the last Softmax of a network and its output
_PASSING = {"Identity", "Cast", "Reshape", "Flatten", "Squeeze", "QuantizeLinear",
            "DequantizeLinear"}  # fmt: skip


@dataclass(frozen=True)
class NetworkFile:
    """An exported network.

    Attributes:
        metadata: what the file says about itself; empty for one from elsewhere.
        shape: shape of its input [N, C, H, W]; a name or None for a dimension of any length.
        run: function from images float32 [N, C, H, W] to its first output as [N, numbers].
        gives_probabilities: whether that output is a softmax or a sigmoid; None for an .mge file,
            whose operators cannot be read.
    """

    metadata: dict[str, Any]
    shape: list[int | str | None]
    run: Callable[[np.ndarray], np.ndarray]
    gives_probabilities: bool | None

    @property
    def channels(self) -> int | str | None:
        """Number of channels of the images."""
        return self.shape[1]

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the images, or None for any."""
        height, width = self.shape[2:]
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None


def is_exported(path: str | PathLike) -> bool:
    """Return whether a file is an exported network, and not a checkpoint, told by its content.

    That of a file that is not there is told by its name.
    """
    return _kind(path) in ("onnx", "mge")


def read(path: str | PathLike) -> NetworkFile:
    """Open an .onnx or .mge file.

    Raises UserError for a file that is missing or broken, or does not take images.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}; give one that export.py wrote")
    return _onnx(path) if _kind(path) == "onnx" else _mge(path)


def _kind(path: str | PathLike) -> str:
    file = Path(path)
    return formats.of_file(file) if file.is_file() else file.suffix.lower()[1:]


def properties(metadata: dict[str, str]) -> dict[str, Any]:
    """Return an ONNX file's metadata as the values that `onnx_export.export_onnx` was given."""
    return {key: _value(text) for key, text in metadata.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text  # a string is stored as it is


def _mge(path: str | PathLike) -> NetworkFile:
    from .mge_runtime import MgeFile

    file = MgeFile(path)

    def run(images: np.ndarray) -> np.ndarray:
        outputs = file(images)
        first = outputs[0] if isinstance(outputs, list) else outputs
        return _logits(path, first, len(images))

    _, channels, *sides = _images(path, file.input_shape)
    if file.metadata.get("free_size"):
        sides = ["height", "width"]
    return NetworkFile(file.metadata, ["batch", channels, *sides], run, None)


def _onnx(path: str | PathLike) -> NetworkFile:
    from . import onnx_runtime

    try:
        session = onnx_runtime.session(path)
    except Exception as error:  # onnxruntime's errors have no common class of their own
        raise _refused(path, error) from None
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in _TYPES:
        what = f"images of type {inputs[0].type}" if len(inputs) == 1 else f"{len(inputs)} inputs"
        raise UserError(f"{path} takes {what}; give a network with one input of float images")
    (entry,) = inputs
    shape = _images(path, entry.shape)
    fixed = shape[0] if isinstance(shape[0], int) else None

    def run(images: np.ndarray) -> np.ndarray:
        images = images.astype(_TYPES[entry.type], copy=False)
        step = fixed or len(images)
        results = []
        for start in range(0, len(images), step):
            batch = images[start : start + step]
            missing = step - len(batch)  # of a fixed batch size: the last image fills the rest
            full = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
            try:
                output = session.run(None, {entry.name: full})[0]
            except Exception as error:  # shapes are compared here at the latest
                raise _refused(path, error) from None
            results.append(_logits(path, output, step)[: len(batch)])
        return np.concatenate(results)

    metadata = properties(session.get_modelmeta().custom_metadata_map)
    return NetworkFile(metadata, shape, run, _ends_in_probabilities(path))


def _logits(path: str | PathLike, output: Any, count: int) -> np.ndarray:
    """Return the first output for `count` images as [count, classes]; UserError if it is not so."""
    is_tensor = isinstance(output, np.ndarray) and output.size
    if not is_tensor or (count > 1 and output.shape[:1] != (count,)):
        what = f"of the shape {output.shape}" if hasattr(output, "shape") else "no tensor"
        raise UserError(
            f"the first output of {path} is {what} for {count} images; give a classifier, whose "
            "first output is [images, classes]"
        )
    return output.reshape(count, -1)


def _refused(path: str | PathLike, error: Exception) -> UserError:
    text = str(error)
    reason = text.partition("Status Message: ")[2] or text.rpartition(":")[2]
    reason = " ".join(reason.split()).strip(" .")
    return UserError(f"onnxruntime cannot run {path} ({reason}); export it anew")


def _images(path: str | PathLike, shape: list) -> list[int | str | None]:
    if len(shape) != 4:
        raise UserError(f"{path} takes {shape}; give a network for images [N, C, height, width]")
    return shape


def _ends_in_probabilities(path: str | PathLike) -> bool:
    """Return whether the first output of an ONNX file comes from a softmax or sigmoid."""
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    producers = {name: node for node in graph.node for name in node.output}
    node = producers.get(graph.output[0].name)
    while node is not None and node.op_type in _PASSING:
        node = producers.get(node.input[0])
    return node is not None and node.op_type in ("Softmax", "Sigmoid")
