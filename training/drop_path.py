"""Stochastic depth: which residual branches a training step leaves out for which images."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from models.layers import DropPath

import megengine.module as M
import numpy as np


def branches(model: M.Module) -> list[tuple[DropPath, float]]:
    """Return the residual branches of a network, each with its share of the highest rate.

    The share rises linearly over the blocks that have such branches, from 0 in the first to 1 in
    the last, and is the same for all branches of a block.
    """
    of_blocks = [[m for m in b.modules() if isinstance(m, DropPath)] for b in model.blocks()]
    of_blocks = [drops for drops in of_blocks if drops]
    last = max(1, len(of_blocks) - 1)
    return [(drop, i / last) for i, drops in enumerate(of_blocks) for drop in drops]


def draw(
    model: M.Module, rate: float, counts: np.ndarray, rank: int, seed: tuple[int, int]
) -> np.ndarray:
    """Return the factors of each branch for the images of this worker: float32 [N, branches].

    A branch of rate p is left out with that probability, factor 0, and else multiplied by
    1 / (1 - p). The factors are those of the images in the whole batch, however many workers share
    it. Without a rate there are no columns.

    Args:
        model: the network.
        rate: probability for the last block.
        counts: number of images of each worker.
        rank: number of this worker.
        seed: seed of the run, and number of the step.
    """
    images = int(counts[rank])
    if not rate:
        return np.zeros((images, 0), np.float32)
    keep = 1 - rate * np.array([share for _, share in branches(model)])
    first = int(counts[:rank].sum())
    drawn = np.random.default_rng((*seed, 1)).random((int(counts.sum()), len(keep)))
    return ((drawn < keep) / keep).astype(np.float32)[first : first + images]


@contextmanager
def applied(model: M.Module, factors: np.ndarray) -> Iterator[None]:
    """Let the branches have the factors of `draw`, [N, branches], within a training step."""
    if not factors.shape[1]:
        yield
        return
    drops = [drop for drop, _ in branches(model)]
    try:
        for drop, column in zip(drops, factors.T, strict=True):
            drop.factors = np.ascontiguousarray(column)
        yield
    finally:
        for drop in drops:
            drop.factors = None
