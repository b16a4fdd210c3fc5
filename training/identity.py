"""What a run records of its images, and how another set of images differs from that."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from data.datasets import Dataset
from data.members import Member


def describe(train: Dataset, val: Dataset) -> dict[str, Any]:
    """Return plain values that change when the classes, the validation set or the names change.

    "classes" are their names. "validation" has the number of images of each class, and a digest of
    their names and sizes in bytes, or of their pixels where they are in memory; their contents are
    not read. "training_names" is a digest of the names of the training images, or None in memory.
    Names are relative to the folder that all of the set's images are in.
    """
    names, sizes = _names(val), _sizes(val)
    validation = []
    for label in range(len(val.classes)):
        digest = hashlib.sha256()
        members = np.flatnonzero(val.labels == label).tolist()
        for index in members:
            digest.update(names[index] + b"\0" + sizes[index] + b"\0")
        validation.append([len(members), digest.hexdigest()[:16]])
    training_names = None
    if not isinstance(train.images, np.ndarray):
        training_names = hashlib.sha256(b"\0".join(_names(train))).hexdigest()[:16]
    return {
        "classes": list(train.classes),
        "validation": validation,
        "training_names": training_names,
    }


def class_difference(before: Sequence[str], now: Sequence[str]) -> str | None:
    """Return in words what has changed about the classes, or None."""
    if list(before) == list(now):
        return None
    gone = [name for name in before if name not in set(now)]
    new = [name for name in now if name not in set(before)]
    changes = [f"class {a!r} is now {b!r}" for a, b in zip(gone, new, strict=False)]
    changes += [f"class {name!r} is no longer there" for name in gone[len(new) :]]
    changes += [f"class {name!r} is new" for name in new[len(gone) :]]
    if not changes:
        return "the classes are in another order"
    return changes[0] + (f" (and {len(changes) - 1} more)" if len(changes) > 1 else "")


def validation_difference(
    before: Sequence[Sequence], now: Sequence[Sequence], classes: Sequence[str]
) -> str | None:
    """Return in words what has changed in the first class with other validation images, or None.

    `before` and `now` are "validation" of `describe`.
    """
    for name, (count, digest), (count_now, digest_now) in zip(classes, before, now, strict=False):
        if count != count_now:
            return f"class {name!r} had {count} validation images, and now it has {count_now}"
        if digest != digest_now:
            return f"the validation images of class {name!r} have other names or sizes than before"
    return None


def _names(dataset: Dataset) -> list[bytes]:
    """Return the names of the images, or empty ones of images in memory."""
    if isinstance(dataset.images, np.ndarray):
        return [b""] * len(dataset)
    top = os.path.commonpath([os.path.dirname(name) for name in dataset.names])
    above = len(os.path.join(top, ""))
    return [os.fsencode(name[above:]) for name in dataset.names]


def _sizes(dataset: Dataset) -> list[bytes]:
    """Return the sizes of the image files in bytes, or the pixels of images in memory."""
    if isinstance(dataset.images, np.ndarray):
        return [image.tobytes() for image in dataset.images]
    sizes = [b"missing"] * len(dataset)
    for index, file in enumerate(dataset.images):
        with suppress(OSError):
            size = file.size if isinstance(file, Member) else os.stat(file).st_size
            sizes[index] = str(size).encode()
    return sizes
