"""Accuracy of a network over a data set, each image counted exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import astuple, dataclass
from typing import Protocol

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np


class Gathers(Protocol):
    """Workers that exchange values, such as training.distributed.process_group.Workers."""

    def gather(self, values: Sequence[float]) -> np.ndarray:
        """Return the values of every process: float64 [processes, len(values)]."""


@dataclass
class Score:
    """Numbers of right answers among `total` images, and the sum of their cross entropies.

    `not_finite` is the number of images with a logit that is infinite or not a number; they count
    as wrong.
    """

    total: int = 0
    correct1: int = 0
    correct5: int = 0
    loss: float = 0.0
    not_finite: int = 0

    def add(self, logits: np.ndarray, labels: np.ndarray, loss: float) -> None:
        """Add a batch: logits [N, classes], labels [N], and the mean loss.

        Labels may also be soft targets, float [N, classes], the largest of which counts, or sets of
        right classes, bool [N, classes], any of which does.
        """
        if labels.ndim == 1 or labels.dtype != bool:
            right = labels if labels.ndim == 1 else labels.argmax(axis=1)
            labels = np.arange(logits.shape[1]) == right[:, None]
        top5 = np.argsort(-logits, axis=1, kind="stable")[:, :5]  # [N, min(5, classes)]
        finite = np.isfinite(logits).all(axis=1)
        hits = np.take_along_axis(labels, top5, axis=1) & finite[:, None]
        self.total += len(labels)
        self.correct1 += int(hits[:, 0].sum())
        self.correct5 += int(hits.any(axis=1).sum())
        self.loss += loss * len(labels)
        self.not_finite += int((~finite).sum())

    def __add__(self, other: Score) -> Score:
        return Score(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def over_all(self, workers: Gathers) -> Score:
        """Return the sum of the scores of all workers."""
        sums = workers.gather(astuple(self)).sum(axis=0).tolist()
        return Score(*(type(mine)(sum) for mine, sum in zip(astuple(self), sums, strict=True)))

    @property
    def top1(self) -> float:
        """Percentage of images whose best class is the right one."""
        return 100 * self.correct1 / max(1, self.total)

    @property
    def top5(self) -> float:
        """Percentage of images with the right class among the best five."""
        return 100 * self.correct5 / max(1, self.total)

    @property
    def mean_loss(self) -> float:
        """Cross entropy per image."""
        return self.loss / max(1, self.total)


def evaluate(
    model: M.Module,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    after_batch: Callable[[Score], None] = lambda score: None,
) -> Score:
    """Return the score of `model` in evaluation mode; its own mode is restored afterwards.

    Args:
        model: a network that returns logits [N, classes].
        batches: (images float32 [N, C, H, W], labels int32 [N]) pairs, as from Loader.evaluation;
            labels may also be sets of right classes, bool [N, classes], which share the loss.
        after_batch: called after each batch with the score so far.
    """
    training = model.training
    model.eval()
    score = Score()
    try:
        for images, labels in batches:
            if len(labels):
                logits = model(mge.Tensor(images))
                loss = _cross_entropy(logits, labels)
                score.add(logits.numpy(), labels, float(loss.numpy()))
            after_batch(score)
    finally:
        model.train(training)
    return score


def _cross_entropy(logits: mge.Tensor, labels: np.ndarray) -> mge.Tensor:
    if labels.ndim == 1:
        return F.nn.cross_entropy(logits, mge.Tensor(labels))
    shares = (labels / labels.sum(axis=1, keepdims=True)).astype(np.float32)
    return -F.mean(F.sum(mge.Tensor(shares) * F.logsoftmax(logits, axis=1), axis=1))
