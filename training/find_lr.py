"""The learning-rate range test: the loss while the rate grows from very small to too large.

Source: Smith, Cyclical Learning Rates for Training Neural Networks, WACV 2017.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable

import numpy as np

from utils import UserError

LOWEST, HIGHEST = 1e-5, 10.0  # of --lr
_SMOOTHING = 0.9  # of the loss, from step to step
_TOO_MUCH = 4.0  # times the lowest loss: it has diverged


def rates(steps: int) -> np.ndarray:
    """Rates of --lr to try, a step each: evenly spaced in the logarithm."""
    return np.geomspace(LOWEST, HIGHEST, steps)


def smoothed(losses: Iterable[float]) -> list[float]:
    """A running average without bias at the start, up to where the loss diverges."""
    found, average = [], 0.0
    for i, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        value = average / (1 - _SMOOTHING**i)
        if not np.isfinite(value) or (found and value > _TOO_MUCH * min(found)):
            break
        found.append(value)
    return found


def suggestion(tried: np.ndarray, curve: list[float]) -> float:
    """The rate at which the smoothed loss falls most steeply over the logarithm of the rate.

    Raises UserError when the curve is too short or never falls.
    """
    if len(curve) >= 5:
        slope = np.gradient(np.array(curve), np.log(tried[: len(curve)]))
        best = int(slope[: int(np.argmin(curve)) + 1].argmin())
        if slope[best] < 0:
            return float(tried[best])
    raise UserError(
        "the loss fell at no learning rate, so there is none to suggest; see find_lr.csv"
    )


def table(tried: np.ndarray, losses: list[float], curve: list[float]) -> bytes:
    """CSV: lr, loss, smoothed loss."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["lr", "loss", "smoothed"])
    writer.writerows(zip(map(float, tried), losses, curve, strict=False))
    return text.getvalue().encode()


def chart(tried: np.ndarray, losses: list[float], curve: list[float]) -> bytes:
    """The loss over the rate, as a PNG."""
    from matplotlib.figure import Figure  # the object interface draws without a display

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(tried[: len(curve)], losses[: len(curve)], alpha=0.4, label="loss of the step")
    axes.plot(tried[: len(curve)], curve, label="smoothed")
    axes.set(xscale="log", xlabel="--lr", ylabel="loss", title="learning-rate range test")
    axes.grid(alpha=0.3)
    axes.legend()
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
