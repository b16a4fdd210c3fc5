"""What there is to train on and to test on: the digits, or a folder of images."""

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
        name: for people and for the output folder.
        images: paths of image files, or one uint8 array [N, H, W, 3] in BGR.
        labels: int32 [N].
        classes: names; label i is classes[i].
        augment: what training does to the images unless told otherwise.
    """

    name: str
    images: list[Path] | np.ndarray
    labels: np.ndarray
    classes: list[str]
    augment: Augmentation

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, index: int) -> np.ndarray:
        """The decoded image, uint8 BGR [H, W, 3]. Raises BadImageError for a broken file."""
        image = self.images[index]
        return image if isinstance(image, np.ndarray) else decode(image)


def image_files(folder: str | Path) -> list[Path]:
    """The image files in a folder and those below, sorted."""
    return sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in SUFFIXES)


# ---------------------------------------------------------------- data sets


DIGITS = Augmentation(affine=True, flip=0)  # a digit must not be mirrored


def digits() -> tuple[Dataset, Dataset]:
    """The 1,797 handwritten digits that come with scikit-learn, at 32 px; every fifth is held out.

    Returns the training set and the validation set.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()  # [1797, 8, 8], values 0 to 16
    small = (bunch.images * 255 / 16).round().astype(np.uint8)
    large = [cv2.resize(image, (32, 32), interpolation=cv2.INTER_CUBIC) for image in small]
    images = np.repeat(np.stack(large)[..., None], 3, axis=-1)
    labels = bunch.target.astype(np.int32)
    held_out = np.arange(len(labels)) % 5 == 0
    return tuple(
        Dataset("digits", images[part], labels[part], list("0123456789"), DIGITS)
        for part in (~held_out, held_out)
    )


def image_folder(root: str | Path, split: str) -> Dataset:
    """The images in `root`/train, or in `root`/val or `root`/test for split "val".

    There is one folder a class, named after it; labels follow the sorted names. Raises UserError
    when a folder is missing or holds no image.
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
    images, labels = [], []
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
    """WordNet identifier -> English name of the 1,000 classes of ILSVRC 2012, in class order, which
    is the identifiers' sorted order. Two names, "crane" and "maillot", are those of two classes.
    """
    lines = (Path(__file__).parent / "imagenet_classes.tsv").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


def class_names(classes: list[str] | None, num_classes: int) -> list[str]:
    """What people call the classes of a network.

    `classes` are its own names, where it has some: ImageNet's identifiers become words. Without,
    1,000 classes are ImageNet's, and others are numbered.
    """
    names = imagenet_classes()
    if classes is None:
        classes = list(names) if num_classes == len(names) else map(str, range(num_classes))
    return [names.get(name, name) for name in classes]


def with_class_order(dataset: Dataset, num_classes: int, classes: list[str] | None) -> Dataset:
    """`dataset` with the labels that a network of `num_classes` classes uses.

    The network's own class names decide where it has them; else a folder of ImageNet wnids is
    scored over all 1,000 classes when the network has 1,000; else the sorted order of the folders,
    whose number must then be `num_classes`. Raises UserError when the classes do not fit.
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
