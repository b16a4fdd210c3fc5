"""The best epoch of a run so far, which is the one that best.pkl is of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Row = dict[str, float]  # of metrics.csv


class BestEpoch:
    """The choice of the best epoch among the rows of metrics.csv.

    Args:
        column: accuracy to choose by.

    Attributes:
        lost: number of epochs at the beginning of the run that are no candidates, as it was resumed
            from a latest.pkl without the best.pkl of these epochs.
    """

    def __init__(self, column: str):
        self.column, self.lost = column, 0

    def row(self, history: Sequence[Row]) -> Row | None:
        """Return the row of the best epoch, or None where there is no candidate."""
        return max(history[self.lost :], key=lambda row: row[self.column], default=None)

    def improves(self, history: Sequence[Row], top1: float) -> bool:
        """Return whether an epoch with the accuracy `top1`, in percent, is better than all rows."""
        best = self.row(history)
        return best is None or top1 > best[self.column]

    def kept(self, history: Sequence[Row], count: int) -> set[int]:
        """Return the numbers of the `count` best epochs and of the `count` last, for --keep."""
        best = sorted(history, key=lambda row: -row[self.column])[:count]  # stable: the first ones
        last = history[max(0, len(history) - count) :]
        return {int(row["epoch"]) for row in (*best, *last)}

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: nothing in a run that has all its epochs."""
        return {"epochs_without_best": self.lost} if self.lost else {}

    def load_state_dict(self, state: dict[str, Any], best_exists: bool) -> str | None:
        """Continue from a checkpoint's state; returns a warning where its best.pkl is missing."""
        self.lost = state.get("epochs_without_best", 0)
        row = self.row(state["history"])
        if row is None or best_exists:
            return None
        self.lost = len(state["history"])
        return (
            f"warning: there is no best.pkl of the epochs so far, of which epoch {row['epoch']} "
            f"was the best ({row[self.column]:.2f} %); best.pkl will be the best of the epochs "
            "from now on"
        )
