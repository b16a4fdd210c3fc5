"""MNIST's idx files, compressed or not; Fashion-MNIST and others have the same form.

It is described at https://yann.lecun.com/exdb/mnist/.
"""

from __future__ import annotations

import gzip
import math
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils import UserError, shown

from .. import archives
from ..datasets import DIGITS, Dataset
from .places import Place

_LARGEST = 1 << 32  # bytes
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
            "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")  # fmt: skip
# the first labels of Fashion-MNIST, whose files have the names of MNIST's
_FIRST_OF_FASHION = ([9, 0, 0, 3, 0, 2, 7, 2, 5, 5], [9, 2, 1, 1, 6, 1, 4, 6, 5, 7])


def read(place: Place) -> Dataset:
    """Return the data set in a file of images and one of labels, in memory.

    Raises UserError for files that are damaged, or are not of each other.
    """
    files: dict[int, list[Path]] = {}
    arrays = {file: _array(file) for file in _with_partners(place.paths)}
    for file, array in arrays.items():
        files.setdefault(array.ndim, []).append(file)
    if sorted(files) != [1, 3] or any(len(some) != 1 for some in files.values()):
        listed = ", ".join(shown(file.name) for file in arrays)
        raise UserError(
            f"{listed} are not one file of images and one of labels; give a folder that has "
            "train-images-idx3-ubyte and train-labels-idx1-ubyte, and t10k- for the test"
        )
    images, labels = arrays[files[3][0]], arrays[files[1][0]]
    if len(images) != len(labels):
        raise UserError(
            f"{shown(files[3][0])} has {len(images)} images and {shown(files[1][0])} "
            f"{len(labels)} labels; give two files that belong together"
        )
    fashion = labels[:10].tolist() in _FIRST_OF_FASHION
    classes = [str(label) for label in range(max(10, int(labels.max()) + 1))]
    return Dataset(
        "Fashion-MNIST" if fashion else "MNIST",
        np.repeat(images[..., None], 3, axis=-1),
        labels.astype(np.int32),
        list(_FASHION) if fashion else classes,
        replace(DIGITS, affine=False, flip=0.5) if fashion else DIGITS,
        folder=place.source,
        split=place.split,
        whole=place.whole,
    )


def _with_partners(paths: list[Path]) -> list[Path]:
    """Return the files; of a single one also the other that belongs to it."""
    if len(paths) > 1:
        return paths
    name, folder = paths[0].name, paths[0].parent
    for some, other in (("images", "labels"), ("labels", "images")):
        if some in name:
            digit = ("idx3", "idx1") if some == "images" else ("idx1", "idx3")
            partner = folder / name.replace(some, other).replace(*digit)
            return [paths[0], partner] if partner.is_file() else paths
    return paths


def _array(file: Path) -> np.ndarray:
    """Return the array of bytes in an idx file, uint8 of one to three dimensions."""
    try:
        opener = gzip.open if archives.kind(file) == "gzip" else open
        with opener(file, "rb") as opened:
            head = opened.read(4)
            shape = np.frombuffer(opened.read(4 * head[3]), ">u4").tolist()
            size = math.prod(shape)
            if head[:3] != b"\0\0\x08" or size > _LARGEST or len(shape) not in (1, 3):
                raise ValueError(f"its sides are {shape}")
            content = opened.read(size + 1)
            if len(content) != size or not size:
                raise ValueError(f"it has {len(content)} bytes of pixels or labels, not {size}")
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise UserError(
            f"{shown(file)} is truncated or damaged ({error}); give a whole copy"
        ) from None
    return np.frombuffer(content, np.uint8).reshape(shape)
