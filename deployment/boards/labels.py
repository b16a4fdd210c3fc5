"""Image files for a kit with their labels, from class folders or from a list of labels."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import numpy as np

from data import readers
from data.decoding import ImageFile
from data.folders import image_files
from utils import UserError, text_of


def labelled_images(
    data: str | Path,
    labels: str | PathLike | None,
    num_classes: int,
    classes: list[str] | None,
) -> tuple[Sequence[ImageFile], list[int]]:
    """Return image files and their labels.

    Args:
        data: folder of images that the file `labels` labels; without `labels`, a folder with
            val/CLASS/IMAGE or test/CLASS/IMAGE.
        labels: file to read by `read_labels`.
        num_classes, classes: classes of the network; see class_order.with_class_order.

    Raises UserError when there are no images, an image has no label, or the classes do not match.
    """
    if labels is None:
        dataset = readers.open_validation(data, num_classes, classes)
        if isinstance(dataset.images, np.ndarray):
            raise UserError(f"{data} holds pixels; give image files, from which the kit is made")
        return dataset.images, dataset.labels.tolist()
    if not Path(data).is_dir():
        raise UserError(f"there is no folder {data}; give one with images in it")
    files = image_files(data)
    if not files:
        raise UserError(f"there are no images in {data}; give a folder that has some in it")
    known = read_labels(labels)
    seen: dict[str, Path] = {}
    for file in files:
        label = known.get(_key(file.name))
        if (other := seen.setdefault(_key(file.name), file)) != file:
            raise UserError(
                f"{other} and {file} are called {_key(file.name)!r} up to the first dot, by which "
                "labels and outputs are found; rename one of them"
            )
        if label is None or not 0 <= label < num_classes:
            what = "no label" if label is None else f"the label {label}"
            raise UserError(
                f"{file.name} has {what} in {labels}; give each image one of 0 to {num_classes - 1}"
            )
    return files, [known[_key(file.name)] for file in files]


def read_labels(path: str | PathLike) -> dict[str, int]:
    """Return file name up to its first dot -> label, from lines `FILE_NAME LABEL`.

    Raises UserError when the file cannot be read, has other lines, or gives a name two labels.
    """
    labels: dict[str, int] = {}
    try:
        lines = text_of(Path(path).read_bytes()).splitlines()
        for name, label in (line.rsplit(maxsplit=1) for line in lines if line.strip()):
            if labels.setdefault(_key(name), int(label)) != int(label):
                raise UserError(
                    f"{path} has the labels {labels[_key(name)]} and {label} for images that are "
                    f"called {_key(name)!r} up to the first dot; rename one of them"
                )
        return labels
    except OSError as error:
        raise UserError(
            f"cannot read the labels {path}: {error.strerror}; give a file that is there and may "
            "be read"
        ) from None
    except ValueError:
        raise UserError(
            f"{path} has lines that are not `FILE_NAME LABEL`; give one that has no others"
        ) from None


def _key(file_name: str) -> str:
    return file_name.replace("\\", "/").rpartition("/")[2].split(".")[0]
