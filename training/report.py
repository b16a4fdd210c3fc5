"""What a run tells while it trains: log lines, a progress bar, and events for TensorBoard."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from data.evaluation import Score

from .progress import Progress, describe
from .run_folder import RunFolder
from .tensorboard import EventFile

_SCORES = {"val": "validation", "ema": "averaged weights"}


class Report:
    """The report of a run of `total` steps.

    Attributes:
        progress: the run's speed, by the clock.
    """

    def __init__(self, folder: RunFolder, batch_size: int, steps_per_epoch: int, total: int):
        self.folder, self.steps_per_epoch, self.total = folder, steps_per_epoch, total
        self.progress = Progress(batch_size)
        self._bar: tqdm | None = None
        self._events: EventFile | None = None  # of the first worker, while it trains

    @contextmanager
    def opened(self, step: int) -> Iterator[None]:
        """Report, within this context, on a run that stands after `step` steps."""
        if not self.folder.silent:
            self._events = EventFile(self.folder.path, step)
        with tqdm(
            total=self.total, initial=step, unit="step", disable=None, dynamic_ncols=True
        ) as self._bar:
            self.progress.open(step)
            yield

    def announce(self, line: str | None) -> None:
        """Log a line, if there is one."""
        if line is not None:
            self.folder.log(line)

    def advance(self) -> None:
        """Move the bar on by one step."""
        assert self._bar is not None  # within `opened`
        self._bar.update()

    def show(self, step: int, epochs_left: int, score: Score, rate: float) -> None:
        """Show the state after `step` steps: the epoch's score so far, and the learning rate."""
        seen = self.progress.look(step, self.total - step, epochs_left)
        if self._events is not None:
            points = {"lr": rate, "images_per_second": seen["speed"]}
            if score.total:
                points["loss"] = score.mean_loss
            self._events.add("step", points, step)
        facts = {
            "loss": f"{score.mean_loss:.4f}" if score.total else "of no image yet",
            "top-1": f"{score.top1:.2f} %" if score.total else "of no image yet",
            "lr": f"{rate:.5f}",
            **describe(**seen),
        }
        assert self._bar is not None  # within `opened`
        if not self._bar.disable:
            self._bar.set_postfix(facts)
            return
        epoch, done = divmod(step - 1, self.steps_per_epoch)
        self.folder.log(
            f"epoch {epoch + 1} step {done + 1}/{self.steps_per_epoch}: "
            + ", ".join(f"{name} {value}" for name, value in facts.items())
            + f", {tqdm.format_interval(seen['left'])} left"
        )

    def end_epoch(
        self,
        step: int,
        rate: float,
        training: Score,
        scores: dict[str, Score],
        changing: dict[str, float],
    ) -> dict[str, float]:
        """Report on the epoch that ended after `step` steps; returns its row of metrics.csv.

        Args:
            rate: learning rate of the next step.
            training: score of the epoch's training images.
            scores: on the validation set, "val" of the network and "ema" of its average.
            changing: what the settings that change by epoch were in it.
        """
        epoch = step // self.steps_per_epoch
        row = {
            "epoch": epoch,
            "step": step,
            "lr": rate,
            **changing,
            "train_loss": training.mean_loss,
            "train_top1": training.top1,
        }
        line = (
            f"epoch {epoch}/{self.total // self.steps_per_epoch}: "
            f"training loss {training.mean_loss:.4f}, top-1 {training.top1:.2f} %"
        )
        for column, score in scores.items():
            line += (
                f"; {_SCORES[column]} loss {score.mean_loss:.4f}, top-1 {score.top1:.2f} %, "
                f"top-5 {score.top5:.2f} % ({score.correct1} of {score.total} right)"
            )
            row |= {
                f"{column}_loss": score.mean_loss,
                f"{column}_top1": score.top1,
                f"{column}_top5": score.top5,
            }
        self.folder.log(line)
        if self._events is not None:
            self._events.add("epoch", row, step)
        return row

    def flush(self) -> None:
        """Write all events out; before a checkpoint that a run may go on from."""
        if self._events is not None:
            self._events.flush()
