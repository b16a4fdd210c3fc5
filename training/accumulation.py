"""A batch in parts, whose gradients add up to those of the whole with less memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np


def parts(
    images: np.ndarray, labels: np.ndarray, count: int
) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    """(images, labels, share of the batch) of `count` parts in order, fewer for a small batch.

    The parts differ by one image at most; mean losses weighted by the shares add up to the mean
    loss of the batch.
    """
    if count == 1:
        yield images, labels, 1.0
        return
    count = min(count, len(labels))
    split = zip(np.array_split(images, count), np.array_split(labels, count), strict=True)
    for part, part_labels in split:
        yield part, part_labels, len(part_labels) / len(labels)
