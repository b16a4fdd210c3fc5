"""Labels from a file in place of those of the folders: ImageNet-ReaL, or any by name of the image.

ImageNet-ReaL is real.json of google-research/reassessed-imagenet, from Beyer et al., Are we done
with ImageNet?, 2020 (arXiv 2006.07159).
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError, shown

from .class_names import imagenet_classes
from .datasets import Dataset

# in ILSVRC2012_val_00000293.JPEG, behind which Hugging Face's names have the class
_NUMBER = re.compile(r"(\d+)(_n\d{8})?\.\w+$")


def with_labels(dataset: Dataset, path: str | Path) -> Dataset:
    """Return a data set with the labels of a JSON file, and without the images that have none.

    The file has either a list with the classes of each image, in the order of the numbers that
    their names end with, as ImageNet-ReaL does; or the classes by the image's name. Classes are
    positions among ImageNet's 1,000, or among the network's where these are others, or names, such
    as WordNet identifiers; classes that the network does not have are left out. The labels are then
    bool [N, C], as an image may have several.

    Raises UserError for a file that is not of this kind or has no label for any image.
    """
    entries = _read(path)
    if isinstance(dataset.images, np.ndarray):
        raise UserError(
            f"--labels {path} is for image files with names, and these have none; give "
            "--data image files"
        )
    position = _positions(dataset.classes)
    labels = np.zeros((len(dataset), len(dataset.classes)), bool)
    for row, image in enumerate(dataset.images):
        for label in _as_list(_of_image(entries, os.path.basename(str(image)), path)):
            index = position(label)
            if index is None:
                raise UserError(
                    f"{path} has the class {label!r} for {shown(str(image))}, which is neither the "
                    "name of a class nor its position; correct it, or leave the image out"
                )
            if index >= 0:
                labels[row, index] = True
    kept = np.flatnonzero(labels.any(axis=1))
    if not len(kept):
        raise UserError(
            f"{path} has no label for any of the {len(dataset)} images of {dataset.name}; give the "
            "data that it is for"
        )
    return replace(dataset, labels=labels).subset(kept.tolist())


def _read(path: str | Path) -> list | dict:
    try:
        entries = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; give --labels a file") from None
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON ({error}); give labels such as ImageNet-ReaL's real.json"
        ) from None
    if not isinstance(entries, list | dict):
        raise UserError(
            f"{path} has neither a list of the images' classes nor the classes by name of the "
            "image; give labels such as ImageNet-ReaL's real.json"
        )
    return entries


def _of_image(entries: list | dict, name: str, path: str | Path) -> Any:
    """Return the entry of an image, or an empty list."""
    if isinstance(entries, dict):
        return entries.get(name, [])
    number = _NUMBER.search(name)
    if number is None or not 1 <= int(number[1]) <= len(entries):
        raise UserError(
            f"{path} has labels by number, 1 to {len(entries)}, and {shown(name)} does not end "
            "with one, as ILSVRC2012_val_00000001.JPEG does"
        )
    return entries[int(number[1]) - 1]


def _as_list(entry: Any) -> Iterable[Any]:
    return entry if isinstance(entry, list) else [entry]


def _positions(classes: list[str]) -> Any:
    """Return a function of a label, which gives the network's class, -1 if it has none, or None.

    None is for a label that means nothing.
    """
    wnids = list(imagenet_classes())
    index = {name: i for i, name in enumerate(classes)}
    numbered = wnids if set(classes) <= set(wnids) else classes
    known = {*classes, *wnids}

    def position(label: Any) -> int | None:
        if isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(numbered):
            return index.get(numbered[label], -1)
        if isinstance(label, str) and label in known:
            return index.get(label, -1)
        return None

    return position
