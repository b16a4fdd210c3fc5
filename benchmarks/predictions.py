"""What a network predicts for each image of a test, and changes to how it predicts."""

from __future__ import annotations

from dataclasses import dataclass

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np

from data.datasets import Dataset
from data.loader import Loader
from training.distributed.process_group import Workers

TOP = 5  # classes that are kept of each image


@dataclass(frozen=True)
class Predictions:
    """The best classes of each image that could be read, in the order of the images.

    Attributes:
        images: positions in the data set, int [N].
        classes: the best classes, int [N, K], the best first; K is at most 5.
        probabilities: theirs, float64 [N, K].
    """

    images: np.ndarray
    classes: np.ndarray
    probabilities: np.ndarray


class Flipped(M.Module):
    """The mean of a network's probabilities for an image and its mirror image, as logarithms.

    Images [N, C, H, W] -> [N, classes]. Source: Krizhevsky et al., NIPS 2012, without the crops.
    """

    def __init__(self, model: M.Module):
        super().__init__()
        self.model = model

    def forward(self, images: mge.Tensor) -> mge.Tensor:
        mirrored = mge.Tensor(np.ascontiguousarray(images.numpy()[..., ::-1]))
        one, other = (F.logsoftmax(self.model(x), axis=1) for x in (images, mirrored))
        return F.logsumexp(F.stack([one, other]), axis=0) - float(np.log(2))


class AmongClasses(M.Module):
    """A network that chooses among some of its classes: [N, C, H, W] -> logits [N, classes].

    Args:
        model: the network.
        classes: these classes, bool [classes].
    """

    def __init__(self, model: M.Module, classes: np.ndarray):
        super().__init__()
        self.model, self.excluded = model, np.where(classes, 0, 1e9).astype(np.float32)

    def forward(self, images: mge.Tensor) -> mge.Tensor:
        return self.model(images) - mge.Tensor(self.excluded)


class Recorder(M.Module):
    """A network that keeps the best classes of what it computes: [N, C, H, W] -> logits."""

    def __init__(self, model: M.Module):
        super().__init__()
        self.model = model
        self._rows: list[np.ndarray] = []  # float64 [N, 2 K]: classes and probabilities

    def forward(self, images: mge.Tensor) -> mge.Tensor:
        result = self.model(images)
        logits = result.numpy().astype(np.float64)
        best = np.argsort(-logits, axis=1, kind="stable")[:, :TOP]
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        self._rows.append(np.concatenate([best, np.take_along_axis(shares, best, 1)], axis=1))
        return result

    def predictions(self, loader: Loader, workers: Workers) -> Predictions:
        """Return what all workers have computed since the beginning; all of them must call it."""
        mine = np.arange(loader.rank, len(loader.dataset), loader.world)
        mine = np.array([i for i in mine.tolist() if i not in loader.skipped], np.float64)
        width = 2 * min(TOP, len(loader.dataset.classes))
        rows = np.concatenate([np.zeros((0, width)), *self._rows])
        table = np.full((-(-len(loader.dataset) // loader.world), 1 + width), np.nan)
        table[: len(mine)] = np.concatenate([mine[:, None], rows], axis=1)
        table = workers.gather(table.ravel()).reshape(-1, 1 + width)
        table = table[~np.isnan(table[:, 0])]
        table = table[np.argsort(table[:, 0], kind="stable")]
        images, classes, probabilities = np.split(table, [1, 1 + width // 2], axis=1)
        return Predictions(images[:, 0].astype(int), classes.astype(int), probabilities)


def right_classes(dataset: Dataset, predictions: Predictions) -> np.ndarray:
    """Return the right class of each prediction's image, int [N].

    Of several right classes it is the predicted one if that is among them, else the first.
    """
    labels = dataset.labels[predictions.images]
    if labels.ndim == 1:
        return labels
    best = predictions.classes[:, 0]
    return np.where(labels[np.arange(len(best)), best], best, labels.argmax(axis=1))


def present_classes(dataset: Dataset) -> np.ndarray:
    """Return which of a data set's classes are those of an image, bool [C]."""
    if dataset.labels.ndim == 2:
        return dataset.labels.any(axis=0)
    return np.bincount(dataset.labels, minlength=len(dataset.classes)) > 0
