"""Load a network from a checkpoint, an ONNX file or an .mge file, ready to classify images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import megengine as mge
import numpy as np

import weights
from data import class_names, long_images
from data.transforms import TORCHVISION, Preprocessing
from utils import UserError
from weights import checkpoint, stated_preprocessing

from .network_file import NetworkFile, is_exported, read
from .verification import Runner


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
        origins: where each field of the preprocessing is from, for reports.
    """

    arch: str
    form: str
    num_classes: int
    class_ids: list[str] | None
    preprocessing: Preprocessing
    size: tuple[int, int]
    run: Runner
    gives_probabilities: bool = False
    origins: dict[str, str] = field(default_factory=dict)

    @property
    def classes(self) -> list[str]:
        """Readable name of each class."""
        return class_names.in_english(self.class_ids, self.num_classes)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return an image, uint8 BGR [H, W, 3], as input of the network, float32 [C, *size]."""
        height, width = self.size
        if height == width:
            return self.preprocessing.evaluation(image)
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
    short = round(max(height, width) / preprocessing.crop_ratio)
    top, left, tall, wide = long_images.middle(image.shape[0], image.shape[1], short)
    image = image[top : top + tall, left : left + wide]
    scale = max(height / tall, width / wide) / preprocessing.crop_ratio
    tall, wide = max(height, round(tall * scale)), max(width, round(wide * scale))
    image = preprocessing.resize(image, wide, tall)
    top, left = (tall - height) // 2, (wide - width) // 2
    return image[top : top + height, left : left + width]


def load(
    path: str | PathLike,
    arch: str | None = None,
    entry: str | None = None,
    stated: stated_preprocessing.Statements | None = None,
) -> Network:
    """Load the network of a checkpoint, which is fused, or of an .onnx or .mge file.

    Args:
        path: the file; one from elsewhere needs a statement of everything that it does not say.
        arch: architecture that the file must hold, if given.
        entry: name of the set of weights to take from a checkpoint of several.
        stated: preprocessing and class names to use instead of the file's, as from
            `weights.stated_preprocessing.of_flags`.

    Raises UserError for a file that is missing, broken or of another architecture, or does not say
    what `stated` leaves open.
    """
    stated = stated or {}
    if is_exported(path):
        if entry is not None:
            raise UserError(f"{path} is an exported network, which has no entries to choose from")
        return _of_file(path, arch, stated)
    contents = checkpoint.read(path, arch, entry=entry, stated=stated)
    model = weights.load(contents, arch, deploy=True)
    model.eval()
    side = contents.preprocessing.size
    return Network(
        contents.arch,
        "deploy",
        contents.num_classes,
        contents.classes,
        contents.preprocessing,
        (side, side),
        lambda images: model(mge.Tensor(images)).numpy(),
        origins=contents.origins,
    )


def _of_file(
    path: str | PathLike, arch: str | None, stated: stated_preprocessing.Statements
) -> Network:
    """Return the network of an .onnx or .mge file, of export.py or from elsewhere."""
    file = read(path)
    metadata = file.metadata
    if metadata.get("features"):
        raise UserError(f"{path} gives feature maps and no classes; export it without --features")
    asked = stated.get("size")
    if file.size and asked is not None and file.size != (asked[0], asked[0]):
        height, width = file.size
        raise UserError(f"{path} takes images of {height} x {width} only; leave out --size")
    try:
        recorded = recorded_preprocessing(metadata)
    except (KeyError, TypeError, ValueError, AttributeError):
        recorded = None
    if recorded is not None:
        refuse_normalizing_twice(path, recorded, stated)
    if recorded is None or not names_classes(metadata):
        if arch is not None:
            raise UserError(f"{path} does not say which architecture it is of; leave out --arch")
        return _of_elsewhere(path, file, recorded, stated)
    actual, num_classes, class_ids = (metadata[k] for k in ("arch", "num_classes", "classes"))
    if arch not in (None, actual):
        raise UserError(
            f"{path} is of {actual}, but {arch} was expected; use --arch {actual} or another file"
        )
    own = stated_preprocessing.of_habit(recorded, "the file")
    if class_ids is not None:
        own["classes"] = (class_ids, "the file")
    preprocessing, class_ids, origins = stated_preprocessing.resolve(
        own, stated, classes=num_classes, channels=recorded.channels, path=path
    )
    return Network(
        actual,
        "int8" if "quantization" in metadata else metadata.get("form", "deploy"),
        num_classes,
        class_ids,
        preprocessing,
        file.size or (preprocessing.size, preprocessing.size),
        _for_classes(file.run, num_classes, path),
        bool(file.gives_probabilities),
        origins,
    )


def names_classes(metadata: Mapping[str, Any]) -> bool:
    """Return whether a file's metadata have an architecture and classes, as export.py writes."""
    count, names = metadata.get("num_classes"), metadata.get("classes", ())
    if not isinstance(metadata.get("arch"), str) or type(count) is not int or count < 1:
        return False
    return names is None or (
        isinstance(names, list) and len(names) == count and all(isinstance(n, str) for n in names)
    )


def refuse_normalizing_twice(
    path: str | PathLike, recorded: Preprocessing, stated: stated_preprocessing.Statements
) -> None:
    """Raise UserError where --mean or --std is for a file that takes pixels as they are."""
    flags = [f"--{name}" for name in ("mean", "std") if name in stated]
    if flags and not any(recorded.mean) and all(value == 1 for value in recorded.std):
        raise UserError(
            f"{path} takes pixels from 0 to 255 and normalizes them itself; leave out "
            f"{' and '.join(flags)}"
        )


def _for_classes(
    run: Callable[[np.ndarray], np.ndarray], count: int, path: str | PathLike
) -> Callable[[np.ndarray], np.ndarray]:
    """Return `run`, which raises UserError where its logits are not of `count` classes."""

    def checked(images: np.ndarray) -> np.ndarray:
        logits = run(images)
        if logits.shape[1] != count:
            raise UserError(
                f"{path} says that it has {count} classes, and computes {logits.shape[1]} numbers; "
                "give the file as export.py wrote it"
            )
        return logits

    return checked


def recorded_preprocessing(metadata: dict[str, Any]) -> Preprocessing:
    """Return the preprocessing in the metadata of an exported file.

    Raises KeyError, TypeError, ValueError or AttributeError where there is none that is valid.
    """
    fields: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in metadata["preprocessing"].items()
    }
    return Preprocessing(**fields)


def _of_elsewhere(
    path: str | PathLike,
    file: NetworkFile,
    recorded: Preprocessing | None,
    stated: stated_preprocessing.Statements,
) -> Network:
    """Return the network of a file that says nothing about itself but perhaps its preprocessing."""
    if recorded is None:
        own = stated_preprocessing.of_habit(TORCHVISION, "assumed: as is usual with PyTorch")
        needed = {"mean", "std", "color", "classes"}
        what = "classes and which preprocessing its network has; give --mean, --std, --color and "
    else:
        own, needed = stated_preprocessing.of_habit(recorded, "the file"), {"classes"}
        what = "classes its network has; give "
    if not needed <= stated.keys():
        raise UserError(
            f"{path} does not say which {what}--class-names, or a file that export.py wrote"
        )
    if file.channels not in (1, 3):
        raise UserError(
            f"{path} takes images {file.shape}; give a network for images [N, 3, height, width]"
        )
    if file.size:
        own["size"] = (min(file.size), "the file")
    elif recorded is None and "size" not in stated:
        raise UserError(f"{path} takes images of any size; give --size in pixels")
    size = file.size or (stated.get("size", own["size"])[0],) * 2
    probe = file.run(np.zeros((1, file.channels, *size), np.float32))
    outputs = probe.shape[1]
    preprocessing, names, origins = stated_preprocessing.resolve(
        own, stated, classes=outputs, channels=file.channels, path=path
    )
    return Network(
        Path(path).stem, "deploy", outputs, names, preprocessing, size, file.run,
        _sum_to_one(probe) if file.gives_probabilities is None else file.gives_probabilities,
        origins,
    )  # fmt: skip


def _sum_to_one(outputs: np.ndarray) -> bool:
    """Return whether outputs [N, classes] of several classes are probabilities, and not logits."""
    sums = outputs.astype(np.float64).sum(axis=1)
    return outputs.shape[1] > 1 and bool(outputs.min() >= 0 and np.abs(sums - 1).max() < 1e-3)
