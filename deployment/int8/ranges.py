"""Ranges of activations: histograms of a network's tensors, and methods to choose clip ranges."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from . import graph
from .dialects import UINT8, Grid

_BINS = 4096
_QUANTILE = 0.9999
_FRACTIONS = np.linspace(0.2, 1, 81)  # of the whole range; candidates for the clip range

Range = tuple[float, float]


class Histogram(NamedTuple):
    """Counts of a tensor's values in bins of equal width from low to high."""

    low: float
    high: float
    counts: np.ndarray

    @property
    def centers(self) -> np.ndarray:
        """Centres of the bins."""
        width = (self.high - self.low) / len(self.counts)
        return self.low + (np.arange(len(self.counts)) + 0.5) * width


def histograms(
    model: onnx.ModelProto, names: Sequence[str], images: np.ndarray
) -> dict[str, Histogram]:
    """Return the histograms of tensors of a float network, in two passes over the images."""
    bounds = dict.fromkeys(names, (np.inf, -np.inf))
    for batch in graph.run(model, images, names, "ranges"):
        for name, value in zip(names, batch, strict=True):
            low, high = bounds[name]
            bounds[name] = min(low, float(value.min())), max(high, float(value.max()))
    counts: dict[str, np.ndarray] = {}
    for batch in graph.run(model, images, names, "histograms"):
        for name, value in zip(names, batch, strict=True):
            counts[name] = counts.get(name, 0) + np.histogram(value, _BINS, bounds[name])[0]
    return {name: Histogram(*bounds[name], counts[name]) for name in names}


def minmax(histogram: Histogram, grid: Grid = UINT8) -> Range:
    """Return the whole range from the lowest to the highest value."""
    return histogram.low, histogram.high


def percentile(histogram: Histogram, grid: Grid = UINT8) -> Range:
    """Return the range without the highest 0.01 % and, if they are negative, the lowest 0.01 %."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = np.linspace(histogram.low, histogram.high, len(share) + 1)
    low = edges[np.searchsorted(share, 1 - _QUANTILE, side="right")]
    return min(float(low), 0.0), float(edges[np.searchsorted(share, _QUANTILE) + 1])


def mse(histogram: Histogram, grid: Grid = UINT8) -> Range:
    """Return the range with the least squared error of rounding and clipping together."""

    def error(low: float, high: float) -> float:
        step = float(grid.scale_and_zero(low, high)[0])
        x = histogram.centers
        beyond = np.square(x - np.clip(x, low, high))
        return float(histogram.counts @ np.where(beyond > 0, beyond, step**2 / 12))

    return _best(histogram, grid, error)


def kl(histogram: Histogram, grid: Grid = UINT8) -> Range:
    """Return the range with the least Kullback-Leibler divergence of quantized from clipped values.

    The zeros of a ReLU are represented exactly in every range; their bin counts as its neighbour
    does, as it would otherwise dominate the divergence.
    Source: S. Migacz, 8-bit Inference with TensorRT, GTC 2017.
    """
    x, counts = histogram.centers, histogram.counts.astype(np.float64)
    zero_bin = int(np.abs(x).argmin())
    counts[zero_bin] = counts[min(zero_bin + 1, len(counts) - 1)]
    levels = grid.highest - grid.lowest + 1

    def divergence(low: float, high: float) -> float:
        scale, zero = grid.scale_and_zero(low, high)
        limits = grid.limits(zero)
        inside = (x >= low) & (x <= high)
        if not (inside & (counts > 0)).any():
            return np.inf
        clipped = np.where(inside, counts, 0)  # values outside are added to the first and last bin
        kept = np.flatnonzero(inside)
        clipped[kept[0]] += counts[: kept[0]].sum()
        clipped[kept[-1]] += counts[kept[-1] + 1 :].sum()
        level = (np.clip(np.rint(x / float(scale)), *limits) - limits[0]).astype(int)
        held = inside & (clipped > 0)
        total = np.bincount(level, np.where(inside, counts, 0), levels)
        bins = np.bincount(level, held, levels)
        spread = total[level] / np.maximum(bins[level], 1)  # evenly over a level's bins
        p, q = clipped[held] / clipped.sum(), np.maximum(spread[held], 1e-3) / total.sum()
        return float(p @ np.log(p / q))

    return _best(histogram, grid, divergence)


def _best(histogram: Histogram, grid: Grid, loss: Callable[[float, float], float]) -> Range:
    low, high = histogram.low, histogram.high
    if grid.symmetric:
        low, high = -max(-low, high), max(-low, high)
    candidates = [(low * f, high * f) for f in _FRACTIONS]
    if histogram.high <= histogram.low:
        return candidates[-1]
    return min(candidates, key=lambda bounds: loss(min(bounds[0], 0), max(bounds[1], 0)))


CLIPS = {"minmax": minmax, "percentile": percentile, "mse": mse, "kl": kl}
