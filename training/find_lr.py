"""The learning-rate range test: the loss while the rate grows from very small to too large.

Source: Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator
from contextlib import closing

import numpy as np

from data.evaluation import Score
from data.figures import as_png
from utils import UserError

from .loop import Trainer

STEPS = 100
LOWEST, HIGHEST = 1e-5, 10.0  # values of --lr
_SMOOTHING = 0.9  # weight of the running average of the loss at each step
_TOO_MUCH = 4.0  # times the lowest loss: it has diverged


def suggest(trainer: Trainer) -> str:
    """Try learning rates, a step each; write find_lr.csv and find_lr.png to the run's folder.

    Returns a sentence with the rate to use. Raises UserError when the loss falls at none.
    """
    folder = trainer.run.folder
    tried = rates(STEPS)
    losses = list(losses_at(trainer, tried * trainer.settings.batch_size / 256))
    curve = smoothed(losses)
    folder.write("find_lr.csv", table(tried, losses, curve))
    folder.write("find_lr.png", chart(tried, losses, curve))
    best = suggestion(tried, curve)
    return f"the loss falls most steeply at --lr {best:.2g}: {folder.path / 'find_lr.png'}"


def rates(steps: int) -> np.ndarray:
    """Return the values of --lr to try, one per step: evenly spaced in the logarithm."""
    return np.geomspace(LOWEST, HIGHEST, steps)


def losses_at(trainer: Trainer, rates: Iterable[float]) -> Iterator[float]:
    """Yield the loss of a training step at each learning rate, one after the other.

    Steps whose images cannot be read are left out. Ends early when a loss is not finite. The
    trainer is not to be trained with afterwards.
    """
    rates = list(rates)
    trainer.start()
    done = 0
    while done < len(rates):
        before = done
        with closing(trainer.batches()) as batches:
            for images, labels in batches:
                trainer.outcomes.score = Score()
                trainer.train_step(images, labels, rates[done])
                try:
                    trainer.settle()
                except UserError:
                    return
                if trainer.outcomes.score.total == 0:
                    continue
                yield trainer.outcomes.score.mean_loss
                done += 1
                if done == len(rates):
                    return
        if done == before:  # no image of an epoch could be read
            return


def smoothed(losses: Iterable[float]) -> list[float]:
    """Return a running average without bias at the start, up to where the loss diverges."""
    curve: list[float] = []
    average = 0.0
    for i, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        value = average / (1 - _SMOOTHING**i)
        if not np.isfinite(value) or (curve and value > _TOO_MUCH * min(curve)):
            break
        curve.append(value)
    return curve


def suggestion(tried: np.ndarray, curve: list[float]) -> float:
    """Return the rate at which the smoothed loss falls most steeply over the logarithm of the rate.

    Raises UserError when the curve is too short or never falls.
    """
    if len(curve) >= 5:
        slope = np.gradient(np.array(curve), np.log(tried[: len(curve)]))
        best = int(slope[: int(np.argmin(curve)) + 1].argmin())
        if slope[best] < 0:
            return float(tried[best])
    raise UserError(
        "the loss fell at no learning rate, or diverged within five steps, so none can be "
        "suggested; see find_lr.csv"
    )


def table(tried: np.ndarray, losses: list[float], curve: list[float]) -> bytes:
    """Return a CSV file with the columns lr, loss and smoothed loss."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["lr", "loss", "smoothed"])
    writer.writerows(zip(map(float, tried), losses, curve, strict=False))
    return text.getvalue().encode()


def chart(tried: np.ndarray, losses: list[float], curve: list[float]) -> bytes:
    """Return a chart of the loss over the learning rate, as a PNG file."""
    from matplotlib.figure import Figure  # the object interface draws without a display

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(tried[: len(curve)], losses[: len(curve)], alpha=0.4, label="loss of the step")
    axes.plot(tried[: len(curve)], curve, label="smoothed")
    axes.set(xscale="log", xlabel="--lr", ylabel="loss", title="learning-rate range test")
    axes.grid(alpha=0.3)
    axes.legend()
    return as_png(figure)
