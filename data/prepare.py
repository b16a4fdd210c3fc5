"""Preparing the images of a batch: decoding, augmentation or crop."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from .augment import Augmentation, augment
from .decoding import BadImageError, ImageFile, decode
from .keyed_random import KeyedRandom
from .transforms import Preprocessing


class Job(NamedTuple):
    """One image to prepare: a file or pixels, and the arguments of KeyedRandom.at.

    Without a key the image is prepared for evaluation.
    """

    image: ImageFile | np.ndarray
    key: tuple[int, ...] | None


@dataclass(frozen=True)
class Prepare:
    """Prepares images: for training by the augmentation, for evaluation by the centre crop."""

    preprocessing: Preprocessing
    augmentation: Augmentation

    @cached_property
    def _random(self) -> KeyedRandom:
        return KeyedRandom()

    def __call__(
        self, jobs: list[Job], out: np.ndarray, note: Callable[[int], None] | None = None
    ) -> dict[int, str]:
        """Write each job's pixels to its row of `out`, uint8 [N, size, size, 3].

        `note` is called with each row before its job begins. Returns row -> sentence for the
        broken files.
        """
        bad: dict[int, str] = {}
        for row, (job, target) in enumerate(zip(jobs, out, strict=True)):
            if note is not None:
                note(row)
            try:
                if job.key is not None:
                    rng = self._random.at(*job.key)
                    augment(job.image, rng, self.augmentation, self.preprocessing, target)
                else:
                    image = job.image
                    image = image if isinstance(image, np.ndarray) else decode(image)
                    target[:] = self.preprocessing.evaluation_crop(image)
            except BadImageError as error:
                bad[row] = str(error)
        return bad
