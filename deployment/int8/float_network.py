"""Read the float network to quantize."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
from google.protobuf.message import DecodeError

from data.class_names import with_wnids
from data.transforms import Preprocessing
from deployment import model_to_deploy
from deployment.network import (
    names_classes,
    recorded_preprocessing,
    refuse_normalizing_twice,
)
from deployment.network_file import properties
from deployment.onnx_export import export_onnx
from utils import UserError
from weights import catalog, checkpoint, formats, stated_preprocessing

from . import graph, qdq
from .dialects import Scheme


class FloatNetwork(NamedTuple):
    """A float ONNX network in deploy form for any batch size, with preprocessing and metadata."""

    model: onnx.ModelProto
    preprocessing: Preprocessing
    metadata: dict[str, Any]


def read(
    path: str, arch: str | None, stated: stated_preprocessing.Statements, entry: str | None = None
) -> FloatNetwork:
    """Read the network of a checkpoint, which is fused and exported, or of export.py's .onnx file.

    The file's preprocessing and class names are replaced by those that are `stated`; `entry` is a
    set of weights in a file of several. Raises UserError when the network cannot be quantized: it
    is quantized already, in train form, or has weights that are not finite.
    """
    if _is_onnx(path):
        if entry is not None:
            raise UserError(f"{path} is an exported network, which has no entries to choose from")
        return _read_onnx(catalog.locate(path), arch, stated)
    model, preprocessing, metadata = model_to_deploy.load(path, arch, entry=entry, stated=stated)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "float.onnx")
        export_onnx(model, file, preprocessing, size=preprocessing.size, metadata=metadata)
        return FloatNetwork(onnx.load(file), preprocessing, metadata)


def trained_ranges(path: str, arch: str | None) -> dict[str, tuple[float, float]]:
    """Return the ranges, tensor -> (lowest, highest), of a checkpoint of train.py --qat.

    Raises UserError when the checkpoint has none.
    """
    bounds = None
    if _is_onnx(path):
        _assert_file(catalog.locate(path))
    else:
        contents = checkpoint.read(catalog.locate(path), arch, color_matters=False)
        bounds = contents.activation_ranges
    if bounds is None:
        raise UserError(
            f"{path} has not been through train.py --qat, so its activations have no ranges yet; "
            "give images by --calibration, a folder"
        )
    return bounds


def with_trained_ranges(
    path: str, model: onnx.ModelProto, bounds: dict[str, tuple[float, float]], scheme: Scheme
) -> onnx.ModelProto:
    """Return the int8 network of a checkpoint of train.py --qat.

    Args:
        path: the checkpoint, for messages.
        model: its float network.
        bounds: its `trained_ranges`.
        scheme: what is quantized, and how.

    Raises UserError when a range that the scheme needs was not trained.
    """
    bounds = qdq.with_flattened(model, bounds)
    names = qdq.activations(model, scheme)
    if missing := [name for name in names if name not in bounds]:
        raise UserError(
            f"{path} has no range of {missing[0]}, which {scheme.dialect.runtime} needs: it was "
            "trained by an earlier version of this project; "
            "calibrate it by quantize.py --calibration, or train it again by train.py --qat"
        )
    return qdq.to_qdq(model, {name: bounds[name] for name in names}, scheme)


def _is_onnx(path: str) -> bool:
    file = catalog.locate(path)
    if not file.is_file():
        return file.suffix.lower() == ".onnx"
    return formats.of_file(file) == "onnx"


def _assert_file(path: Path) -> None:
    if not path.is_file():
        raise UserError(f"there is no file {path}; give a checkpoint, or a file of export.py")


def _read_onnx(
    path: Path, arch: str | None, stated: stated_preprocessing.Statements
) -> FloatNetwork:
    _assert_file(path)
    try:
        model = onnx.load(path)
    except (DecodeError, OSError):
        raise UserError(
            f"{path} is no ONNX file; give a checkpoint, or a file of export.py"
        ) from None
    except (onnx.checker.ValidationError, ValueError):
        raise UserError(
            f"{path} has its weights in another file, which is missing or incomplete; copy that "
            "file beside it"
        ) from None
    kinds = {node.op_type for node in model.graph.node}
    if kinds & {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger"}:
        raise UserError(f"{path} is quantized already; give the float network it was made from")
    if any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer):
        raise UserError(f"{path} is in half precision; export it again without --half")
    metadata = properties({entry.key: entry.value for entry in model.metadata_props})
    if metadata.get("features"):
        raise UserError(f"{path} gives feature maps; export it again without --features")
    if metadata.get("form") == "train" or "BatchNormalization" in kinds:
        raise UserError(
            f"{path} is in train form, with branches and batch norms; "
            "export it again without --keep-branches"
        )
    opset = max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=0)
    if opset < 13:
        raise UserError(
            f"{path} has ONNX opset {opset}, which has no scales for channels; "
            "export it again with --opset 13 or more"
        )
    try:
        preprocessing = recorded_preprocessing(metadata)
        if not names_classes(metadata):
            raise ValueError
        actual, count = metadata["arch"], metadata["num_classes"]
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UserError(
            f"{path} does not say which network and which preprocessing it has; "
            "give a checkpoint, or a file that export.py wrote"
        ) from None
    if arch not in (None, actual):
        raise UserError(
            f"{path} is of {actual}, but {arch} was expected; use --arch {actual} or another file"
        )
    refuse_normalizing_twice(path, preprocessing, stated)
    sides = [one.dim_value for one in model.graph.input[0].type.tensor_type.shape.dim[2:]]
    asked = stated.get("size")
    if asked is not None and any(side not in (0, asked[0]) for side in sides):
        raise UserError(
            f"{path} takes images of {sides[0]} x {sides[1]} only; leave out --size, or export it "
            f"again with --size {asked[0]}"
        )
    _assert_finite(str(path), graph.weights(model))
    own = stated_preprocessing.of_habit(preprocessing, "the file")
    preprocessing, classes, origins = stated_preprocessing.resolve(
        own, stated, classes=count, channels=preprocessing.channels, path=path
    )
    metadata["classes"] = classes or (metadata["classes"] and with_wnids(metadata["classes"]))
    if stated:
        metadata["origins"] = origins
    _note(model, {**metadata, "preprocessing": asdict(preprocessing)})
    height, width = (d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim[2:])
    if height != width:
        raise UserError(f"{path} takes images of {height} x {width}; export it for squares")
    return FloatNetwork(graph.for_batch(model, "batch"), preprocessing, metadata)


def _note(model: onnx.ModelProto, metadata: dict[str, Any]) -> None:
    """Write what may have been stated anew into the metadata of a network."""
    written = {entry.key: entry for entry in model.metadata_props}
    for key in ("preprocessing", "classes", "origins"):
        if key in metadata:
            entry = written.get(key) or model.metadata_props.add(key=key)
            entry.value = json.dumps(metadata[key])


def _assert_finite(path: str, weights: dict[str, np.ndarray]) -> None:
    for name, value in weights.items():
        if not np.isfinite(value).all():
            raise UserError(f"{path} has weights that are no numbers, in {name}; use others")
