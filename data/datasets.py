"""A labelled set of images, and the handwritten digits; readers/ has all other forms of data."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from utils import UserError, shown

from .augment import Augmentation
from .decoding import decode
from .folders import LeftOut
from .members import Members

# names of a split; the first one that is there is taken
SPLITS = {"train": ("train",), "val": ("val", "valid", "validation", "test")}


class NoSuchPartError(UserError):
    """The data are there, but not the part that is asked for, such as train/, or not its labels."""


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
