"""Batches, decoded and transformed in threads ahead of the network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np

from .datasets import BadImageError, Dataset
from .transforms import Preprocessing

cv2.setNumThreads(0)  # it lets the threads here run at once, and they are enough


class Loader:
    """Yields (images float32 [B, 3, size, size], labels int32 [B]) of a Dataset.

    Args:
        dataset, preprocessing: what to load and how.
        batch_size: images a batch.
        workers: threads that decode and transform.
        rank, world: which part of each batch, and of the evaluation's images, this process takes.
        skip_bad: leave broken images out, counting them in `skipped`, instead of raising
            BadImageError. A batch is then smaller by as many, and may be empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        preprocessing: Preprocessing,
        batch_size: int,
        workers: int = 2,
        skip_bad: bool = False,
        rank: int = 0,
        world: int = 1,
    ):
        self.rank, self.world = rank, world
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.workers = workers
        self.skip_bad = skip_bad
        self.skipped: set[int] = set()

    def evaluation(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Every image exactly once, in order; the last batch may be shorter."""
        indices = self._part(np.arange(len(self.dataset)))
        starts = range(0, len(indices), self.batch_size)
        batches = [indices[start : start + self.batch_size] for start in starts]
        return self._load(
            batches, lambda index: self.preprocessing.evaluation(self.dataset.image(index))
        )

    def training(self, seed: int, epoch: int, skip: int = 0):
        """One epoch in random order and augmented, from batch number `skip` on; whole batches only.

        Order and augmentation depend on seed, epoch and image alone, so that an epoch entered in
        the middle goes on as it would have.
        """
        order = np.random.default_rng((seed, epoch)).permutation(len(self.dataset))
        count = len(order) // self.batch_size
        batches = order[: count * self.batch_size].reshape(count, self.batch_size)[skip:]
        batches = [self._part(batch) for batch in batches]

        def augmented(index: int) -> np.ndarray:
            rng = np.random.default_rng((seed, epoch, index))
            return self.dataset.augment(self.dataset.image(index), rng, self.preprocessing)

        return self._load(batches, augmented)

    def _part(self, indices: np.ndarray) -> np.ndarray:
        count = len(indices)
        return indices[count * self.rank // self.world : count * (self.rank + 1) // self.world]

    def _load(self, batches: list, transform: Callable) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        def sample(index: int) -> np.ndarray | None:
            try:
                return transform(index)
            except BadImageError:
                if not self.skip_bad:
                    raise
                self.skipped.add(int(index))
                return None

        waiting = deque()
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                for batch in batches:
                    waiting.append((batch, [pool.submit(sample, index) for index in batch]))
                    if len(waiting) > 3:  # batches ahead of the network
                        yield self._collect(*waiting.popleft())
                while waiting:
                    yield self._collect(*waiting.popleft())
            finally:
                for _, futures in waiting:
                    for future in futures:
                        future.cancel()

    def _collect(self, batch: np.ndarray, futures: list) -> tuple[np.ndarray, np.ndarray]:
        samples = [future.result() for future in futures]
        kept = [i for i, image in enumerate(samples) if image is not None]
        side = self.preprocessing.size
        images = np.stack([samples[i] for i in kept]) if kept else np.empty((0, 3, side, side))
        return images.astype(np.float32, copy=False), self.dataset.labels[batch[kept]]
