"""Images in one folder or archive without class folders, whose labels are in a list.

A list is a text of lines "NAME LABEL", with or without a comma; Kaggle's solution of ImageNet, a
table of ImageId and PredictionString; or the development kit of ILSVRC 2012. A label is the name of
a class, such as a wnid, or a number: the position among the sorted names, from 0.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from utils import UserError, shown, text_of

from ..class_names import are_numbers
from ..datasets import Dataset, NoSuchPartError
from ..folders import LeftOut, image_files, is_image
from ..members import Members
from . import devkit
from .common import Sample, ordered
from .places import Place

_NAMES = ("val_label.txt", "val_labels.txt", "val_list.txt", "val.txt", "LOC_val_solution.csv")
_NAMES_OF_TRAINING = ("train_label.txt", "train_labels.txt", "train_list.txt", "train.txt")


_HEADERS = {"imageid", "image_id", "image", "img", "id", "filename", "file_name", "file", "name",
            "path"}  # fmt: skip
_LABEL_HEADERS = {"label", "labels", "label_id", "class", "class_id", "classid", "class_name",
                  "category", "category_id", "target", "wnid", "synset",
                  "predictionstring"}  # fmt: skip


class Labels(NamedTuple):
    """A list of labels: the file that it is from, and image's name without its end -> label."""

    file: Path
    of: Mapping[str, str | int]


def read_labels(path: str | PathLike) -> Labels:
    """Return the labels in a list; raise UserError when it cannot be read."""
    path = Path(path)
    if devkit.is_one(path):
        return Labels(path, devkit.labels(path))
    try:
        lines = text_of(path.read_bytes()).splitlines()
    except OSError as error:
        raise UserError(
            f"cannot read the labels {shown(path)}: {error.strerror}; give a file that is there "
            "and may be read"
        ) from None
    rows = []
    columns = _columns(lines[0], path) if lines else None
    for number, line in enumerate(lines):
        if not line.strip() or (number == 0 and columns is not None):
            continue
        name, label = _row(line, columns)
        if not label:
            raise UserError(
                f"line {number + 1} of {shown(path)} is not NAME LABEL, NAME,LABEL or a row of "
                f"Kaggle's LOC_val_solution.csv: {line[:80]!r}; give a list that has no other lines"
            )
        rows.append((_key(name), label))
    others = [label for _, label in rows[1:]]
    if others and are_numbers(others) and not are_numbers([rows[0][1]]):
        del rows[0]  # a header in other words
    if not rows:
        raise UserError(f"{shown(path)} is empty; give a list with the label of each image")
    labels: dict[str, str] = {}
    for name, label in rows:
        if labels.setdefault(name, label) != label:
            raise UserError(
                f"{shown(path)} gives {shown(name)} the labels {labels[name]!r} and {label!r}; "
                "folders and the ends of names do not count there, so give each image a name of "
                "its own"
            )
    if are_numbers(labels.values()):
        return Labels(path, {name: int(label) for name, label in labels.items()})
    return Labels(path, labels)


def _columns(line: str, path: Path) -> tuple[int, int] | None:
    """Return the columns of name and label in a table whose header `line` is; None for no header.

    Raises UserError where the header has several columns that none is the label's of.
    """
    words = [word.lower() for word in (_cells(line) if "," in line else line.split())]
    names = [i for i, word in enumerate(words) if word in _HEADERS]
    labels = [i for i, word in enumerate(words) if word in _LABEL_HEADERS]
    if len(words) == 2 and names[:1] == [0]:
        return 0, 1
    if "," not in line or not names or (names[0] > 0 and not labels):
        return None
    if len(labels) == 1:
        return names[0], labels[0]
    raise UserError(
        f"{shown(path)} has the columns {', '.join(map(shown, words))}, but exactly one called "
        "label, class, category, target or wnid was expected; give a list of NAME,LABEL"
    )


def _cells(line: str) -> list[str]:
    try:
        return [cell.strip() for cell in next(csv.reader([line]))]
    except csv.Error:  # no text
        return []


def _row(line: str, columns: tuple[int, int] | None) -> tuple[str, str]:
    """Return name and label of a line; the label is empty where there is none, or several may be.

    `columns` are those of name and label, where a header tells them.
    """
    if "," in line:
        cells = _cells(line)
        if columns is None and any(cells[2:]):
            return line, ""
        name, label = (cells[at] if at < len(cells) else "" for at in columns or (0, 1))
        words = label.split()
        # Kaggle's labels go on with the four numbers of a box, and more boxes
        boxes = len(words) > 1 and len(words) % 5 == 0
        if boxes and are_numbers(word for i, word in enumerate(words) if i % 5):
            return name, words[0]
        return name, label
    parts = line.rsplit(maxsplit=1)
    return (parts[0], parts[1]) if len(parts) == 2 else (line.strip(), "")


def _key(name: str) -> str:
    name = name.replace("\\", "/").rpartition("/")[2]
    return name.rpartition(".")[0] if is_image(name) else name


def beside(where: Path, place: Place) -> Labels:
    """Return the list in or beside a folder, or beside an archive; raise UserError without one.

    The lists of training images are others than those of the validation set.
    """
    of_training = "train" in place.names and not place.whole
    for folder in (where, where.parent, where.parent.parent) if where.is_dir() else (where.parent,):
        candidates = [folder / name for name in (_NAMES_OF_TRAINING if of_training else _NAMES)]
        if not of_training:
            candidates += sorted(folder.glob("*devkit*"))
        for file in candidates:
            if file.is_file() or devkit.is_one(file):
                return read_labels(file)
    advice = (
        f"put them into class folders, or put {_NAMES_OF_TRAINING[0]} beside them"
        if of_training
        else f"put {_NAMES[0]}, {_NAMES[-1]} or ImageNet's development kit beside them, or, for "
        "validation and tests, give their labels by --val-list FILE"
    )
    raise NoSuchPartError(f"the images in {shown(where)} are in no class folders; {advice}")


def of_folder(place: Place, labels: Labels | None) -> Dataset:
    """Return the images in a folder and below, labelled by a list; see `read`."""
    left_out = LeftOut()
    folder = place.paths[0]
    files = image_files(folder, left_out)
    names = {index: file.name for index, file in enumerate(files)}
    return read(place, files, names, labels or beside(folder, place), left_out)


def read(
    place: Place,
    images: Sequence[Path] | Members,
    names: Mapping[int, str],
    labels: Labels,
    left_out: LeftOut,
) -> Dataset:
    """Return the data set of images that a list labels.

    Args:
        place: where they are from.
        images: the images.
        names: position in `images` -> name of the file.
        labels: the list.
        left_out: what is left out beside them; labels without an image are added.

    Raises UserError naming an image without a label.
    """
    samples = []
    seen: dict[str, str] = {}
    for index, name in names.items():
        key = _key(name)
        if key in seen:
            raise UserError(
                f"{shown(place.source)} has two images that a list cannot tell apart, "
                f"{shown(seen[key])} and {shown(name)}; give each a name of its own, or put the "
                "images into class folders"
            )
        seen[key] = name
        label = labels.of.get(key)
        if label is None:
            raise UserError(
                f"the image {shown(name)} of {shown(place.source)} has no label in "
                f"{shown(labels.file)}; give a list with all of them"
            )
        samples.append(Sample(label, name, index))
    left_out.missing += len(labels.of.keys() - seen.keys())
    return ordered(samples, images, place.source, place.split, left_out, place.whole)
