"""Splitting a batch into parts whose gradients add up to those of the whole, for less memory."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def parts(arrays: Sequence[np.ndarray], count: int) -> Iterator[tuple]:
    """Yield `count` parts of a batch in order: (part of each array ..., share of the batch).

    The parts differ by one image at most, and are fewer where the batch has fewer images. Mean
    losses weighted by the shares add up to the mean loss of the batch.

    Args:
        arrays: images [B, ...], labels [B] and so on, all with the batch as their first axis.
        count: number of parts.
    """
    images = len(arrays[0])
    count = min(count, images)
    for part in zip(*(np.array_split(array, count) for array in arrays), strict=True):
        yield *part, len(part[0]) / images
