"""A network in a file of any kind, ready to run."""

from __future__ import annotations

import json
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import megengine as mge
import numpy as np

import weights
from data import datasets
from data.transforms import Preprocessing
from utils import UserError
from weights import checkpoint

from .verification import Runner


@dataclass(frozen=True)
class Network:
    """What a file holds, and the means to run it.

    Attributes:
        arch: name of the architecture.
        classes: names for people, one a class.
        preprocessing: what an image goes through before.
        run: float32 [1, 3, size, size] -> logits [1, classes].
    """

    arch: str
    classes: list[str]
    preprocessing: Preprocessing
    run: Runner

    def probabilities(self, image: np.ndarray) -> np.ndarray:
        """uint8 BGR [H, W, 3] -> float64 [classes]. Raises UserError where the logits are not
        numbers.
        """
        logits = self.run(self.preprocessing.evaluation(image)[None])[0].astype(np.float64)
        if not np.isfinite(logits).all():
            raise UserError(f"this {self.arch} gives no numbers but NaN; use other weights")
        powers = np.exp(logits - logits.max())
        return powers / powers.sum()


def load(path: str | PathLike, arch: str | None = None) -> Network:
    """The network in a checkpoint, which is fused, or in an .onnx or .mge file of export.py.

    `arch` is the architecture it must be of, where that is known. Raises UserError for a file that
    is missing, broken or of another architecture.
    """
    kind = Path(path).suffix.lower()
    if kind in (".onnx", ".mge"):
        if not Path(path).is_file():
            raise UserError(f"there is no file {path}; give one that export.py wrote")
        return _described(path, arch, *(_load_onnx(path) if kind == ".onnx" else _load_mge(path)))
    found = checkpoint.read(path, arch)
    model = weights.load(found, arch, deploy=True)
    model.eval()
    classes = datasets.class_names(found.classes, found.num_classes)
    return Network(
        found.arch, classes, found.preprocessing, lambda images: model(mge.Tensor(images)).numpy()
    )


def _load_onnx(path: str | PathLike) -> tuple[dict, Runner]:
    from .int8 import runtime

    try:
        session = runtime.session(path)
    except Exception as error:  # onnxruntime's have no class of their own in common
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
    """What an ONNX file says of itself, as `onnx_export.export_onnx` was given it."""
    return {key: _value(text) for key, text in metadata.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text  # which had no need of JSON


def _load_mge(path: str | PathLike) -> tuple[dict, Runner]:
    from .mge_runtime import MgeFile

    file = MgeFile(path)
    return file.metadata, file


def _described(path: str | PathLike, arch: str | None, said: dict, run: Runner) -> Network:
    """A network with what its file says of it."""
    try:
        classes = datasets.class_names(said["classes"], said["num_classes"])
        found = Network(said["arch"], classes, Preprocessing(**said["preprocessing"]), run)
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} does not say which classes and which preprocessing its network has; "
            "give a file that export.py wrote"
        ) from None
    if arch not in (None, found.arch):
        raise UserError(
            f"{path} is of {found.arch}, but {arch} was expected; "
            f"use --arch {found.arch} or another file"
        )
    return found
