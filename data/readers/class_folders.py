"""Image files in a folder for each class: train/CLASS/IMAGE and val/CLASS/IMAGE."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from utils import UserError, shown

from ..augment import Augmentation
from ..datasets import SPLITS, Dataset, NoSuchPartError
from ..folders import LeftOut, entries, image_files, is_folder
from ..formats import SUFFIXES


def read(root: str | Path, split: str, exact: bool = False) -> Dataset:
    """Return the images in the folder `root`/`split`, in which each class has a folder.

    For the split "val" the folder may also be valid/, validation/ or test/, unless `exact`. Labels
    follow the sorted names of the classes; bytes in them that are not UTF-8 are escaped. Raises
    UserError when a folder is missing or holds no image.
    """
    root = Path(root)
    folder = _split_folder(root, split, exact)
    left_out = LeftOut()
    classes: list[str] = []
    images: list[Path] = []
    labels: list[int] = []
    above = len(os.path.join(folder, ""))
    for entry in entries(folder, left_out):
        if not is_folder(entry):
            left_out.add_file(entry.name)
            continue
        files = image_files(entry.path, left_out)
        if not files:
            raise UserError(
                f"the class folder {shown(entry.path)} has no images "
                f"({', '.join(sorted(SUFFIXES))}); fill it or remove it"
            )
        labels += [len(classes)] * len(files)
        classes.append(shown(entry.name))
        images += files
    if not classes:
        raise NoSuchPartError(
            f"{shown(folder)} has no class folders; it needs one folder of images a class"
        )
    return Dataset(
        shown(root.resolve().name),
        images,
        np.array(labels, np.int32),
        classes,
        Augmentation(),
        folder=folder,
        split=f"{folder.name}/",
        left_out=left_out,
        names=[os.fspath(file)[above:] for file in images],
    )


def _split_folder(root: Path, split: str, exact: bool) -> Path:
    """Return the folder of a split; raise UserError when there is none."""
    names = (split,) if exact else SPLITS[split]
    wanted = " or ".join(f"{name}/" for name in (names[0], *names[3:]))
    if not root.is_dir():
        raise UserError(
            f"there is no data folder {shown(root)}; give one with {wanted}<class>/<image> in it"
        )
    for name in names:
        if (root / name).is_dir():
            return root / name
    advice = f"it needs {wanted}<class>/<image>"
    if exact:
        there = [shown(entry.name) for entry in entries(root, LeftOut()) if is_folder(entry)]
        advice = f"give one of its folders to --split: {', '.join(there) or 'it has none'}"
    elif split == "val":
        advice += ", or valid/ or validation/; for training, --holdout 0.1 takes a tenth of train/"
    raise NoSuchPartError(f"the data folder {shown(root)} has no {wanted}; {advice}")
