"""Load a network from a checkpoint, an ONNX file or an .mge file, ready to classify images."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import megengine as mge
import numpy as np

import weights
from data import datasets
from data.transforms import Preprocessing
from utils import UserError
from weights import checkpoint, formats
from weights import preprocessing as said

from .verification import Runner


@dataclass(frozen=True)
class Network:
    """A network of a file and a function that runs it.

    Attributes:
        arch: name of the architecture.
        classes: readable name of each class.
        preprocessing: preprocessing of the images that `run` takes.
        run: function from images float32 [1, 3, size, size] to logits [1, classes].
        origins: where each field of the preprocessing is from, for reports.
    """

    arch: str
    classes: list[str]
    preprocessing: Preprocessing
    run: Runner
    origins: dict[str, str] = field(default_factory=dict)

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """Return the probabilities, float64 [classes], of an image, uint8 BGR [H, W, 3].

        Raises UserError when a logit is not finite.
        """
        logits = self.run(self.preprocessing.evaluation(image)[None])[0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise UserError(f"this {self.arch} computes no numbers but NaN; use other weights")
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()


def load(
    path: str | PathLike,
    arch: str | None = None,
    entry: str | None = None,
    stated: said.Statements | None = None,
) -> Network:
    """Load the network of a checkpoint, which is fused, or of an .onnx or .mge file of export.py.

    If `arch` is given, the file must hold that architecture; `entry` is a set of weights in a file
    of several. What is `stated` of the preprocessing and the class names replaces what the file
    says. Raises UserError for a file that is missing, broken or of another architecture.
    """
    if not Path(path).is_file():
        raise UserError(f"there is no file {path}; give a checkpoint or a file of export.py")
    kind = formats.of_file(path)
    if kind in ("onnx", "mge"):
        return _from_metadata(
            path, arch, stated or {}, *(_load_onnx(path) if kind == "onnx" else _load_mge(path))
        )
    contents = checkpoint.read(path, arch, entry=entry, stated=stated)
    model = weights.load(contents, arch, deploy=True)
    model.eval()
    return Network(
        contents.arch,
        datasets.class_names(contents.classes, contents.num_classes),
        contents.preprocessing,
        lambda images: model(mge.Tensor(images)).numpy(),
        contents.origins,
    )


def _load_onnx(path: str | PathLike) -> tuple[dict, Runner]:
    from .int8 import runtime

    try:
        session = runtime.session(path)
    except Exception as error:  # onnxruntime's errors have no common class of their own
        reason = str(error).rpartition(":")[2].strip(" .")
        raise UserError(f"onnxruntime cannot run {path} ({reason}); export it anew") from None
    entry = session.get_inputs()[0]
    if len(entry.shape) != 4 or entry.shape[2] != entry.shape[3]:
        raise UserError(f"{path} takes {entry.shape}; give a network for square images")
    copies = entry.shape[0] if isinstance(entry.shape[0], int) else 1

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {entry.name: np.repeat(images, copies, axis=0)})[0][:1]

    return properties(session.get_modelmeta().custom_metadata_map), run


def properties(metadata: dict[str, str]) -> dict[str, Any]:
    """Return an ONNX file's metadata as the values that `onnx_export.export_onnx` was given."""
    return {key: _value(text) for key, text in metadata.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # a string is stored as it is


def _load_mge(path: str | PathLike) -> tuple[dict, Runner]:
    from .mge_runtime import MgeFile

    file = MgeFile(path)
    return file.metadata, file


def _from_metadata(
    path: str | PathLike, arch: str | None, stated: said.Statements, metadata: dict, run: Runner
) -> Network:
    """Return the network that a file's metadata describe."""
    try:
        own = said.of_habit(Preprocessing(**metadata["preprocessing"]), "the file")
        count, names = metadata["num_classes"], metadata["classes"]
        preprocessing, given, origins = said.resolve(own, stated, classes=count, path=path)
        classes = datasets.class_names(given or names, count)
        network = Network(metadata["arch"], classes, preprocessing, run, origins)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} does not say which classes and which preprocessing its network has; "
            "give a file that export.py wrote"
        ) from None
    if arch not in (None, network.arch):
        raise UserError(
            f"{path} is of {network.arch}, but {arch} was expected; "
            f"use --arch {network.arch} or another file"
        )
    return network
