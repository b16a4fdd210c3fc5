"""A validation set taken from the training images."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace

import numpy as np

from utils import UserError

from .datasets import Dataset


def hold_out(dataset: Dataset, fraction: float, seed: int) -> tuple[Dataset, Dataset]:
    """Return a training set without the images held out, and these as validation set.

    Of each class with several images it is the `fraction` nearest to 0, but at least one and not
    all, when their names in the folder are hashed with the seed: the same images wherever the
    folder is, and nearly the same ones when images are added.

    Raises UserError when no class has two images.
    """
    names = [os.fsencode(name) for name in dataset.names or map(str, range(len(dataset)))]
    key = str(seed).encode()
    hashes = np.array([hashlib.blake2b(name, digest_size=8, key=key).digest() for name in names])
    held_out = np.zeros(len(dataset), bool)
    for label in range(len(dataset.classes)):
        of_class = np.flatnonzero(dataset.labels == label)
        count = min(max(1, int(len(of_class) * fraction + 0.5)), len(of_class) - 1)
        order = sorted(of_class, key=lambda index: hashes[index])
        held_out[order[:count]] = True
    if not held_out.any():
        raise UserError(
            f"no class of {dataset.name} has two images, so --holdout has none to take; add images"
        )
    train, val = (dataset.subset(np.flatnonzero(part).tolist()) for part in (~held_out, held_out))
    return train, replace(val, split=f"--holdout {fraction:g}")
