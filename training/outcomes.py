"""The outcomes of steps, looked at late so that the device need not wait for this program."""

from __future__ import annotations

from pathlib import Path

import megengine as mge
import numpy as np

from data.evaluation import Score
from utils import UserError

from .distributed.process_group import Workers


class NotFiniteError(Exception):
    """The loss of a step is infinite or not a number; `step` is the step's number."""

    def __init__(self, step: int):
        super().__init__(f"step {step}")
        self.step = step


def diverged(what: str, step: int, epoch: int, latest: Path) -> UserError:
    """Return the error that a loss, a weight or logits are not finite any more.

    Args:
        what: what is not finite, as in "loss".
        step, epoch: when, the epoch counted from 1.
        latest: the last checkpoint, which may not exist yet.
    """
    kept = f"the last good checkpoint is {latest}"
    return UserError(
        f"the {what} became infinite or not a number at step {step} (epoch {epoch}); "
        f"{kept if latest.exists() else 'no checkpoint had been saved yet'}; "
        "try a lower --lr or a warm-up"
    )


class Outcomes:
    """Losses and logits of the steps, and the score of those that have been counted.

    Attributes:
        score: over all workers, of the steps counted since it was last reset.
    """

    def __init__(self, workers: Workers):
        self.workers, self.score = workers, Score()
        self._pending: list[tuple[int, mge.Tensor, mge.Tensor, np.ndarray]] = []

    def add(self, step: int, loss: mge.Tensor, logits: mge.Tensor, labels: np.ndarray) -> None:
        """Note a mean loss and logits [N, C], which may still be in the making; labels [N]."""
        self._pending.append((step, loss, logits, labels))

    def count(self, keep: int = 0) -> None:
        """Wait for all outcomes but the last `keep`, and add them to the score.

        Raises NotFiniteError, and forgets all that are pending, when a loss is not finite.
        """
        while len(self._pending) > keep:
            step, loss, logits, labels = self._pending.pop(0)
            score = Score()
            score.add(logits.numpy(), labels, float(loss.numpy()))
            score = score.over_all(self.workers)
            if not np.isfinite(score.loss):
                self._pending.clear()
                raise NotFiniteError(step)
            self.score += score
