"""A batch in parts, whose gradients add up to those of the whole with less memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def parts(arrays: Sequence[np.ndarray], count: int) -> Iterator[tuple]:
    """(part of each array ..., share of the batch) of `count` parts in order, fewer for a small
    batch; the arrays, images [B, ...] and labels say, have the batch as their first axis.

    The parts differ by one image at most; mean losses weighted by the shares add up to the mean
    loss of the batch.
    """
    images = len(arrays[0])
    count = min(count, images)
    for part in zip(*(np.array_split(array, count) for array in arrays), strict=True):
        yield *part, len(part[0]) / images
