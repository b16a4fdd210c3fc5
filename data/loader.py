"""Batches for training and for evaluation, prepared ahead of the network."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from itertools import islice

import numpy as np

from . import by_epoch, stalls
from .augment import Augmentation
from .datasets import Dataset
from .decoding import BadImageError
from .prepare import Job, Prepare
from .transforms import Preprocessing
from .workers import DataWorkers

AHEAD = 3  # batches in preparation while the network computes another

Batch = tuple[np.ndarray, np.ndarray]


class Loader:
    """Loads batches (images float32 [B, C, size, size], labels int32 [B]) of a Dataset.

    Order and pixels depend only on the seed, the epoch and the image: neither on the number of
    workers nor, over all ranks together, on the number of ranks.

    Args:
        dataset: images, labels, and the augmentation of training.
        preprocessing: size, interpolation and normalization of the images.
        batch_size: images per batch: of all ranks together in training, of each in evaluation.
        workers: processes that decode and augment; with 0, and for images in memory, the calling
            thread does it.
        skip_bad: leave broken images out and add them to `skipped`, instead of raising
            BadImageError. Batches are then smaller, and may be empty.
        rank: number of this process in distributed training.
        world: number of processes in distributed training.
        stall_timeout: seconds after which an image that is not ready is an error; 0 for never.

    Attributes:
        epochs: number of epochs of the run, along which settings of the augmentation may change.
        while_waiting: function that is called now and then while a batch is not ready; what it
            raises ends the loading.
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
        stall_timeout: float = stalls.LIMIT,
    ):
        self.dataset = dataset
        self.preprocessing = preprocessing
        self.batch_size = batch_size
        self.workers = 0 if isinstance(dataset.images, np.ndarray) else workers
        self.skip_bad = skip_bad
        self.rank, self.world = rank, world
        self.stall_timeout = stall_timeout
        self.epochs = 1
        self.while_waiting: Callable[[], object] = lambda: None
        self.skipped: set[int] = set()  # indices of this rank's broken images
        self._arrays: list[np.ndarray] = []  # see _array

    def evaluation(self) -> Iterator[Batch]:
        """Yield every image exactly once, in order; the last batch may be shorter.

        Of several ranks, rank r yields the images r, r + world, r + 2 world ...
        """
        samples = np.arange(self.rank, len(self.dataset), self.world)[:, None]
        starts = range(0, len(samples), self.batch_size)
        batches = [samples[start : start + self.batch_size] for start in starts]
        return self._load(batches, Prepare(self.preprocessing, self.dataset.augment))

    def augmentation(self, epoch: int) -> Augmentation:
        """Return the augmentation of epoch 0, 1, ..."""
        return by_epoch.at(self.dataset.augment, epoch, self.epochs)

    def training(self, seed: int, epoch: int, skip: int = 0) -> Generator[Batch, None, None]:
        """Yield an epoch in random order, augmented, from batch `skip` on; whole batches only.

        Order and augmentation depend only on seed, epoch and image, so that an epoch can be resumed
        in the middle. With repeated augmentation, an epoch has the same number of batches
        of fewer images, each augmented that many times. Of several ranks, rank r yields the r-th of
        `world` parts of each batch; their sizes differ by one image at most.
        """
        augment, preprocessing = self.augmentation(epoch), self.preprocessing
        if augment.size is not None:
            preprocessing = replace(preprocessing, size=augment.size)
        repeats = augment.repeats
        count = len(self.dataset) // self.batch_size
        order = np.random.default_rng((seed, epoch)).permutation(len(self.dataset))
        order = order[: -(-count * self.batch_size // repeats)]
        samples = np.stack([order.repeat(repeats), np.tile(np.arange(repeats), len(order))], axis=1)
        batches = samples[: count * self.batch_size].reshape(count, self.batch_size, 2)
        # repetitions of an image go to different ranks; in batches of at least twice as many images
        # as repetitions, they are not mixed with each other either
        apart = np.argsort(np.arange(self.batch_size) % repeats, kind="stable")
        shares = np.array_split(batches[skip:, apart], self.world, axis=1)
        return self._load(shares[self.rank], Prepare(preprocessing, augment), (seed, epoch))

    def _load(
        self,
        batches: np.ndarray | list[np.ndarray],
        prepare: Prepare,
        key: tuple[int, ...] | None = None,
    ) -> Generator[Batch, None, None]:
        """Yield a batch for each array of samples, int [B, 2]: image and number of its repetition.

        `key` is the seed and the epoch of the augmentation; without it, images are prepared for
        evaluation.
        """
        if not len(batches):
            return
        largest = max(map(len, batches))
        if self.workers == 0:
            side = prepare.preprocessing.size
            pixels = np.empty((largest, side, side, 3), np.uint8)
            for samples in batches:
                part, jobs = pixels[: len(samples)], self._jobs(samples, key)
                names = [job.image for job in jobs]
                with stalls.watched(names, self.stall_timeout, self.while_waiting) as note:
                    bad = prepare(jobs, part, note)
                yield self._finish(samples, part, bad)
            return
        to_submit = iter(batches)
        count = min(self.workers, largest)
        timing = self.stall_timeout, self.while_waiting
        with DataWorkers(prepare, count, AHEAD, largest, *timing) as workers:
            for samples in islice(to_submit, AHEAD):
                workers.submit(self._jobs(samples, key))
            for samples in batches:
                batch = self._finish(samples, *workers.collect())
                for following in islice(to_submit, 1):
                    workers.submit(self._jobs(following, key))
                yield batch

    def _jobs(self, samples: np.ndarray, key: tuple[int, ...] | None) -> list[Job]:
        return [
            Job(self.dataset.images[sample[0]], None if key is None else (*key, *sample))
            for sample in samples.tolist()
        ]

    def _finish(self, samples: np.ndarray, pixels: np.ndarray, bad: dict[int, str]) -> Batch:
        """Return a batch of the rows whose files are not broken, normalized.

        The workers leave normalization to this process: a quarter of the bytes goes through shared
        memory, and normalizing is the copy out of it.
        """
        if bad and not self.skip_bad:
            raise BadImageError(
                f"{bad[min(bad)]}; train.py and test.py leave such files out with --skip-bad-images"
            )
        self.skipped.update(int(samples[row, 0]) for row in bad)
        kept = [row for row in range(len(samples)) if row not in bad]
        images = self._array(len(kept), pixels.shape[1])
        self.preprocessing.normalize_all((pixels[row] for row in kept), images)
        return images, self.dataset.labels[samples[kept, 0]]

    def _array(self, count: int, side: int) -> np.ndarray:
        """Return an array, float32 [count, C, side, side], of an earlier batch no longer in use.

        Fresh memory for a batch takes the system as long as filling it takes this process.
        """
        for array in self._arrays:
            unused = sys.getrefcount(array) == 3  # the list, the loop, the call
            if unused and len(array) >= count and array.shape[-1] == side:
                return array[:count]
        array = np.empty((count, self.preprocessing.channels, side, side), np.float32)
        self._arrays = [*self._arrays[-2:], array]
        return array[:count]
