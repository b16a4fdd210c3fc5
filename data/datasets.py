"""Data sets for training and validation: the handwritten digits, or a folder of images.

What other forms of data there are, and how they are told apart, is in readers/.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from utils import UserError, shown

from .augment import Augmentation
from .decoding import decode
from .folders import LeftOut, entries, image_files, is_folder
from .formats import SUFFIXES
from .members import Members

# names of a split; the first one that is there is taken
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "test")}


@dataclass(frozen=True)
class Dataset:
    """Images with labels.

    Attributes:
        name: shown to people.
        images: paths of image files, files in archives, or one uint8 array [N, H, W, 3] in BGR.
        labels: int32 [N].
        classes: names of the classes; classes[i] is that of label i.
        augment: augmentation of training unless other settings are given.
        folder: the folder of the classes, or the archive; None for images that are in none.
        split: name of the part of the data that this is, for people.
        left_out: what in the folder is not in the data set.
        names: CLASS/FILE of each image, the same in whatever form the data is; without it, images
            are numbered.
        numbered: the labels are numbers that the source gives, and `classes` made from them.
        whole: the source has no parts, so that this is all there is to train and to validate on.
    """

    name: str
    images: list[Path] | Members | np.ndarray
    labels: np.ndarray
    classes: list[str]
    augment: Augmentation
    _: KW_ONLY
    folder: Path | None = None
    split: str = ""
    left_out: LeftOut = field(default_factory=LeftOut)
    names: Sequence[str] = ()
    numbered: bool = False
    whole: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """Return the decoded image, uint8 BGR [H, W, 3]; raise BadImageError for a broken file."""
        image = self.images[index]
        return image if isinstance(image, np.ndarray) else decode(image)

    def subset(self, indices: Iterable[int]) -> Dataset:
        """Return a data set of some of the images."""
        chosen = list(indices)
        images: list[Path] | Members | np.ndarray
        if isinstance(self.images, Members):
            images = self.images.take(chosen)
        elif isinstance(self.images, np.ndarray):
            images = self.images[chosen]
        else:
            images = [self.images[index] for index in chosen]
        names = [self.names[index] for index in chosen] if self.names else ()
        return replace(self, images=images, labels=self.labels[chosen], names=names)


# ---------------------------------------------------------------- data sets


DIGITS = Augmentation(affine=True, flip=0)  # a digit must not be mirrored


def digits() -> tuple[Dataset, Dataset]:
    """Return scikit-learn's 1,797 handwritten digits at 32 px as training and validation set.

    Every fifth image belongs to the validation set.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()  # [1797, 8, 8], values 0 to 16
    small = (bunch.images * 255 / 16).round().astype(np.uint8)
    large = [cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC) for image in small]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    labels = bunch.target.astype(np.int32)
    held_out = np.arange(len(labels)) % 5 == 0
    train, val = (
        Dataset("digits", images[part], labels[part], list("0123456789"), DIGITS)
        for part in (~held_out, held_out)
    )
    return train, val


def image_folder(root: str | Path, split: str, exact: bool = False) -> Dataset:
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
        raise UserError(
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
    raise UserError(f"the data folder {shown(root)} has no {wanted}; {advice}")


def left_out(datasets: Sequence[Dataset]) -> list[str]:
    """Return a warning about what is in the folders but not in the data sets; [] if nothing is."""
    texts = {dataset.folder: str(dataset.left_out) for dataset in datasets}
    parts = [f"{text} in {shown(folder)}" for folder, text in texts.items() if folder and text]
    return [f"warning: left out: {'; '.join(parts)}"] if parts else []


def single_class(dataset: Dataset) -> list[str]:
    """Return a warning about a training set of one class; [] if there are more."""
    if len(dataset.classes) > 1:
        return []
    warning = f"warning: {dataset.classes[0]} is the only class, so there is nothing to tell apart"
    parts = [name.split("/") for name in dataset.names]
    below = [shown(name) for name in sorted({each[1] for each in parts if len(each) > 2})]
    if len(below) > 1:
        warning += (
            f"; if the folders in it, such as {below[0]} and {below[1]}, are the classes, move "
            f"them up into {shown(dataset.folder or dataset.name)}"
        )
    return [warning]
