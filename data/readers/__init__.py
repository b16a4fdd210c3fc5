"""Data in the forms in which people hold it, told by content: one file a form.

A reader returns a Dataset whose images are files, files inside archives, or pixels in memory;
order, loading and errors are then the same for all of them.
"""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

from utils import UserError, shown

from .. import archives, class_order
from ..datasets import Dataset
from ..folders import LeftOut, image_files
from ..members import Members
from . import archive, cifar, class_folders, idx, lists, parquet, places, webdataset
from .common import image_paths
from .lists import Labels


def open_dataset(
    root: str | Path, split: str, exact: bool = False, labels: str | PathLike | None = None
) -> Dataset:
    """Return a part of the data that --data names.

    Args:
        root: a folder, a file, or a pattern of files such as "train-{0000..1023}.tar".
        split: "train" or "val", which may also be called valid, validation or test; with `exact`,
            the part's own name.
        exact: take no other name for it.
        labels: list of the images' labels, see lists.py; for images that are in no class folders.

    Raises UserError when there is no such data, or it is damaged.
    """
    known: Labels | None = None if labels is None else lists.read_labels(labels)
    if (small := cifar.read(Path(root), split)) is not None:
        _assert_unlabelled(root, known)
        return small
    place = places.find(root, split, exact)
    if place is None:
        dataset = class_folders.read(root, split, exact)
        _assert_unlabelled(root, known)
        return dataset
    if place.kind == "folder":
        return lists.of_folder(place, known)
    if place.kind == "idx":
        _assert_unlabelled(root, known)
        return idx.read(place)
    if place.kind == "parquet":
        place = parquet.unpack(place)
    members, texts = archives.all_members(place.paths)
    labelled = webdataset.read(place, members, texts) if known is None else None
    return labelled or archive.read(place, members, known)


def open_validation(
    root: str | Path,
    num_classes: int,
    classes: list[str] | None,
    labels: str | PathLike | None = None,
) -> Dataset:
    """Return the validation images of `open_dataset`, with the labels that a network uses.

    See `class_order.with_class_order` for `num_classes` and `classes`. Raises UserError when there
    are no such images, or their classes do not fit the network's.
    """
    dataset = open_dataset(root, "val", labels=labels)
    return class_order.with_class_order(dataset, num_classes, classes)


def _assert_unlabelled(root: str | Path, labels: Labels | None) -> None:
    """Raise UserError for a list that would label images which have labels."""
    if labels is not None:
        raise UserError(
            f"this part of {shown(root)} has labels of its own, so there is nothing to label by "
            f"{shown(labels.file)}; leave --val-list out"
        )


def is_archive(path: Path) -> bool:
    """Return whether a path is a tar or zip; False for what cannot be read."""
    readable = os.path.isfile(path) and os.access(path, os.R_OK)
    return readable and archives.kind(path) in ("tar", "zip")


def find_images(root: str | Path) -> list[Path] | Members:
    """Return all images in a folder, or in an archive or the archives of a pattern, sorted.

    Raises UserError when there is no such folder or file.
    """
    path = Path(root)
    if path.is_dir():
        return image_files(path)
    place = places.find(root, "train", exact=False)
    if place is None:
        raise UserError(f"there is no folder {shown(root)}, and no archive; give one with images")
    if place.kind == "idx":
        raise UserError(
            f"{shown(root)} holds pixels and no image files; give a folder or an archive of images"
        )
    if place.kind == "parquet":
        place = parquet.unpack(place)
    members, _ = archives.all_members(place.paths)
    paths = image_paths(members.names, LeftOut())
    return members.take(sorted(paths, key=lambda index: paths[index]))
