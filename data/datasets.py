"""Data sets for training and validation: the handwritten digits, or a folder of images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from utils import UserError

from .augment import Augmentation
from .decoding import decode

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff"}


@dataclass(frozen=True)
class Dataset:
    """Images with labels.

    Attributes:
        name: shown to people.
        images: paths of image files, or one uint8 array [N, H, W, 3] in BGR.
        labels: int32 [N].
        classes: names of the classes; classes[i] is that of label i.
        augment: augmentation of training unless other settings are given.
    """

    name: str
    images: list[Path] | np.ndarray
    labels: np.ndarray
    classes: list[str]
    augment: Augmentation

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """Return the decoded image, uint8 BGR [H, W, 3]; raise BadImageError for a broken file."""
        image = self.images[index]
        return image if isinstance(image, np.ndarray) else decode(image)


def image_files(folder: str | Path) -> list[Path]:
    """Return the image files in a folder and in all folders below, sorted."""
    return sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in SUFFIXES)


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


def image_folder(root: str | Path, split: str) -> Dataset:
    """Return the images in `root`/train, or for split "val" those in `root`/val or `root`/test.

    Each class has a folder with its name; labels follow the sorted names. Raises UserError when a
    folder is missing or holds no image.
    """
    root = Path(root)
    names = ("train",) if split == "train" else ("val", "test")
    wanted = " or ".join(f"{name}/" for name in names)
    if not root.is_dir():
        raise UserError(
            f"there is no data folder {root}; give one with {wanted}<class>/<image> in it"
        )
    folder = next((root / name for name in names if (root / name).is_dir()), None)
    if folder is None:
        raise UserError(f"the data folder {root} has no {wanted}; it needs {wanted}<class>/<image>")
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
    if not classes:
        raise UserError(f"{folder} has no class folders; it needs one folder of images a class")
    images: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        files = image_files(folder / name)
        if not files:
            raise UserError(
                f"the class folder {folder / name} has no images ({', '.join(sorted(SUFFIXES))}); "
                "fill it or remove it"
            )
        images += files
        labels += [label] * len(files)
    return Dataset(root.resolve().name, images, np.array(labels, np.int32), classes, Augmentation())


def imagenet_classes() -> dict[str, str]:
    """Return WordNet identifier -> English name of the 1,000 classes of ILSVRC 2012.

    They are in class order, which is the sorted order of the identifiers. The names "crane" and
    "maillot" stand for two classes each.
    """
    lines = (Path(__file__).parent / "imagenet_classes.tsv").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


def class_names(classes: list[str] | None, num_classes: int) -> list[str]:
    """Return the names of a network's classes in English.

    `classes` are the names that its checkpoint holds; ImageNet's identifiers among them become
    words. Without them, 1,000 classes are taken to be ImageNet's, and others are numbered.
    """
    names = imagenet_classes()
    if classes is None:
        imagenet = num_classes == len(names)
        classes = list(names) if imagenet else [str(label) for label in range(num_classes)]
    return [names.get(name, name) for name in classes]


def with_class_order(dataset: Dataset, num_classes: int, classes: list[str] | None) -> Dataset:
    """Return `dataset` with the labels that a network of `num_classes` classes uses.

    The network's own class names decide where its checkpoint has them. Otherwise, for a network
    with 1,000 classes, folders with ImageNet's WordNet identifiers get ImageNet's labels; other
    folders get labels in sorted order, and there must be `num_classes` of them.

    Raises UserError when the classes do not fit.
    """
    order = classes
    if order is None:
        wnids = list(imagenet_classes())
        imagenet = num_classes == len(wnids) and set(dataset.classes) <= set(wnids)
        order = wnids if imagenet else dataset.classes
    strangers = [name for name in dataset.classes if name not in set(order)]
    if strangers or len(order) != num_classes:
        detail = f", and does not know {strangers[0]!r}" if strangers and classes else ""
        raise UserError(
            f"the data set {dataset.name} has {len(dataset.classes)} classes, but the network was "
            f"trained on {num_classes}{detail}; give the data it was trained for"
        )
    index = {name: i for i, name in enumerate(order)}
    new = np.array([index[name] for name in dataset.classes], np.int32)
    return replace(dataset, labels=new[dataset.labels], classes=list(order))
