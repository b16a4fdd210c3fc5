"""A network in a file of any kind, ready to run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import megengine as mge
import numpy as np

from data import datasets
from data.transforms import Preprocessing
from training import checkpoint
from utils import UserError


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
    run: Callable[[np.ndarray], np.ndarray]

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
    """The network in a checkpoint, which is fused, or in an .onnx file of export.py.

    `arch` is the architecture it must be of, where that is known. Raises UserError for a file that
    is missing, broken or of another architecture.
    """
    if Path(path).suffix.lower() == ".onnx":
        return _load_onnx(path, arch)
    found = checkpoint.read(path, arch)
    model = checkpoint.load_model(found, arch, deploy=True)
    model.eval()
    classes = datasets.class_names(found.classes, found.num_classes)
    return Network(
        found.arch, classes, found.preprocessing, lambda images: model(mge.Tensor(images)).numpy()
    )


def _load_onnx(path: str | PathLike, arch: str | None) -> Network:
    import onnxruntime

    if not Path(path).is_file():
        raise UserError(f"there is no file {path}; give an .onnx file that export.py wrote")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's have no class of their own in common
        reason = str(error).rpartition(":")[2].strip()
        raise UserError(f"onnxruntime cannot run {path} ({reason}); export it anew") from None
    said = session.get_modelmeta().custom_metadata_map
    (data,), (logits,) = session.get_inputs(), session.get_outputs()
    batch = data.shape[0] if isinstance(data.shape[0], int) else 1

    def run(images: np.ndarray) -> np.ndarray:
        return session.run(None, {data.name: np.repeat(images, batch, axis=0)})[0][:1]

    return _described(path, arch, {key: said[key] for key in said}, logits.shape[1], run)


def _described(path, arch, said, num_classes, run) -> Network:
    """A network with what its file says of it."""
    try:
        classes, preprocessing = json.loads(said["classes"]), json.loads(said["preprocessing"])
        found = Network(
            said["arch"],
            datasets.class_names(classes, num_classes),
            Preprocessing(**preprocessing),
            run,
        )
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
