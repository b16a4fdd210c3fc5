"""Load a network from a checkpoint, an ONNX file or an .mge file, ready to classify images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
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

from .input_format import in_color_order
from .network_file import NetworkFile, is_exported, properties, read
from .verification import Runner

__all__ = ["Network", "is_exported", "load", "properties"]


@dataclass(frozen=True)
class Network:
    """A network of a file and a function that runs it.

    Attributes:
        arch: name of the architecture; of a file from elsewhere, the file's name.
        form: "train", "deploy" or "int8".
        num_classes: number of classes.
        class_ids: name of each class as the file has it, or None.
        preprocessing: preprocessing of the images that `run` takes.
        size: their height and width in pixels.
        run: function from images float32 [N, C, *size] to logits [N, classes].
        gives_probabilities: whether `run` returns probabilities instead, as some files do.
        assumed: what neither the file nor the caller said, in words, or None.
    """

    arch: str
    form: str
    num_classes: int
    class_ids: list[str] | None
    preprocessing: Preprocessing
    size: tuple[int, int]
    run: Runner
    gives_probabilities: bool = False
    assumed: str | None = None

    @property
    def classes(self) -> list[str]:
        """Readable name of each class."""
        return datasets.class_names(self.class_ids, self.num_classes)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return an image, uint8 BGR [H, W, 3], as input of the network, float32 [C, *size]."""
        height, width = self.size
        if height == width:
            return replace(self.preprocessing, size=height).evaluation(image)
        return self.preprocessing.normalize(_crop(image, self.preprocessing, height, width))

    def probabilities(self, inputs: np.ndarray) -> np.ndarray:
        """Return the probabilities, float64 [N, classes], of inputs [N, C, *size].

        Those of a single class are sigmoids of the logits. Raises UserError when a logit is not
        finite.
        """
        logits = np.asarray(self.run(inputs)).astype(np.float64)
        if not np.isfinite(logits).all():
            raise UserError(f"this {self.arch} computes no numbers but NaN; use other weights")
        if self.gives_probabilities:
            return logits
        if self.num_classes == 1:
            return np.exp(-np.logaddexp(0, -logits))
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)


def _crop(image: np.ndarray, preprocessing: Preprocessing, height: int, width: int) -> np.ndarray:
    """Return the centre crop of `height` x `width` pixels, uint8 BGR.

    As in Preprocessing.evaluation_crop, the crop takes `crop_ratio` of the resized image in the
    direction in which the image is shorter, compared with the crop.
    """
    tall, wide = image.shape[:2]
    scale = max(height / tall, width / wide) / preprocessing.crop_ratio
    tall, wide = max(height, round(tall * scale)), max(width, round(wide * scale))
    image = preprocessing.resize(image, wide, tall)
    top, left = (tall - height) // 2, (wide - width) // 2
    return image[top : top + height, left : left + width]


def load(
    path: str | PathLike,
    arch: str | None = None,
    stated: Mapping[str, tuple[Any, str]] | None = None,
) -> Network:
    """Load the network of a checkpoint, which is fused, or of an .onnx or .mge file.

    Args:
        path: the file; one from elsewhere needs a statement of everything.
        arch: architecture that the file must hold, if given.
        stated: field of the Preprocessing, or "classes" for the names of the classes -> the value
            to use instead of the file's, and who states it.

    Raises UserError for a file that is missing, broken or of another architecture, or does not say
    what `stated` leaves open.
    """
    changes = {field: value for field, (value, _) in (stated or {}).items()}
    class_names = changes.pop("classes", None)
    if is_exported(path):
        return _of_file(path, arch, changes, class_names)
    contents = checkpoint.read(path, arch)
    model = weights.load(contents, arch, deploy=True)
    model.eval()
    preprocessing = _changed(path, contents.preprocessing, changes)
    return Network(
        contents.arch,
        "deploy",
        contents.num_classes,
        _names(path, class_names, contents.num_classes) or contents.classes,
        preprocessing,
        (preprocessing.size, preprocessing.size),
        lambda images: model(mge.Tensor(images)).numpy(),
    )


def _of_file(
    path: str | PathLike,
    arch: str | None,
    changes: dict[str, Any],
    class_names: Sequence[str] | None,
) -> Network:
    """Return the network of an .onnx or .mge file, of export.py or from elsewhere."""
    file = read(path)
    metadata = file.metadata
    if metadata.get("features"):
        raise UserError(f"{path} gives feature maps and no classes; export it without --features")
    try:
        preprocessing = Preprocessing(
            **{
                key: tuple(value) if isinstance(value, list) else value
                for key, value in metadata["preprocessing"].items()
            }
        )
        actual, num_classes, class_ids = (metadata[k] for k in ("arch", "num_classes", "classes"))
    except (KeyError, TypeError, ValueError, AttributeError):
        return _of_elsewhere(path, file, changes, class_names)
    if arch not in (None, actual):
        raise UserError(
            f"{path} is of {actual}, but {arch} was expected; use --arch {actual} or another file"
        )
    size = file.size or (preprocessing.size, preprocessing.size)
    if file.size and changes.get("size", min(size)) != min(size):
        raise UserError(f"{path} takes images of {size[0]} x {size[1]} only; leave out --size")
    preprocessing = _changed(path, preprocessing, changes)
    if file.size is None:
        size = (preprocessing.size, preprocessing.size)
    return Network(
        actual,
        "int8" if "quantization" in metadata else metadata.get("form", "deploy"),
        num_classes,
        _names(path, class_names, num_classes) or class_ids,
        preprocessing,
        size,
        file.run,
    )


def _of_elsewhere(
    path: str | PathLike,
    file: NetworkFile,
    changes: dict[str, Any],
    class_names: Sequence[str] | None,
) -> Network:
    """Return the network of a file that says nothing about itself."""
    if class_names is None or not {"mean", "std", "color"} <= changes.keys():
        raise UserError(
            f"{path} does not say which classes and which preprocessing its network has; "
            "give --mean, --std, --color and --class-names, or a file that export.py wrote"
        )
    if file.channels not in (1, 3):
        raise UserError(
            f"{path} takes images {file.shape}; give a network for images [N, 3, height, width]"
        )
    side = min(file.size) if file.size else changes.get("size")
    if side is None:
        raise UserError(f"{path} takes images of any size; give --size in pixels")
    changes = {**changes, "size": side, "channels": file.channels}
    preprocessing = _changed(path, Preprocessing(color=changes["color"]), changes)
    size = file.size or (side, side)
    outputs = file.run(np.zeros((1, file.channels, *size), np.float32)).shape[1]
    names = _names(path, class_names, outputs)
    assumed = f"{preprocessing.interpolation} resizing"
    if "crop_ratio" not in changes:
        assumed += f", crop ratio {preprocessing.crop_ratio:g}"
    return Network(
        Path(path).stem, "deploy", outputs, names, preprocessing, size, file.run,
        file.gives_probabilities, assumed,
    )  # fmt: skip


def _changed(
    path: str | PathLike, preprocessing: Preprocessing, changes: dict[str, Any]
) -> Preprocessing:
    """Return a Preprocessing with other fields.

    Another colour order alone reverses mean and standard deviation: each colour keeps its own.
    """
    if changes.get("color", preprocessing.color) != preprocessing.color:
        preprocessing = in_color_order(preprocessing, changes["color"])
    try:
        return replace(preprocessing, **changes)
    except ValueError:
        raise UserError(f"{path} cannot be given {changes}, which is not possible") from None


def _names(
    path: str | PathLike, class_names: Sequence[str] | None, num_classes: int
) -> list[str] | None:
    if class_names is not None and len(class_names) != num_classes:
        raise UserError(
            f"{path} has {num_classes} classes, but --class-names gives {len(class_names)} names; "
            "give a file with one name for each"
        )
    return None if class_names is None else list(class_names)
