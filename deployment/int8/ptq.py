"""Post-training quantization: equalization, clipping and bias correction in one function."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx

from . import bias, equalize, graph, qdq, ranges
from .dialects import DIALECTS, Dialect, Scheme

_DEFAULT = Scheme()


class Quantized(NamedTuple):
    """Arguments of `qdq.to_qdq` for a network, and how they were chosen.

    Attributes:
        model: equalized float network, its biases corrected for int8 weights and activations.
        equalized: equalized float network before the bias correction.
        bounds: ranges of the activations.
        clip: method that chose the ranges.
        tried: clipping method -> SQNR of the logits on the calibration images in dB.
        scheme: what is quantized, and how.
    """

    model: onnx.ModelProto
    equalized: onnx.ModelProto
    bounds: dict[str, ranges.Range]
    clip: str
    tried: dict[str, float]
    scheme: Scheme

    def to_qdq(self) -> onnx.ModelProto:
        """Return the int8 network."""
        return qdq.to_qdq(self.model, self.bounds, self.scheme)


def quantize(
    model: onnx.ModelProto,
    images: np.ndarray,
    scheme: Scheme = _DEFAULT,
    clip: str = "auto",
) -> Quantized:
    """Choose how to quantize a float network in deploy form.

    Args:
        model: network made by `onnx_graph.to_onnx`.
        images: calibration images, float32 [N, C, H, W], normalized.
        scheme: what to quantize, and how.
        clip: one of `ranges.CLIPS`, or "auto" for the one with the highest SQNR of the logits on
            `images` after bias correction.
    """
    if scheme.per_channel:
        equalized = equalize.by_activations(model, images)
    else:
        equalized = equalize.by_weights(model)
    equalize.assert_exact(model, equalized, images)
    expected = graph.logits(equalized, images)
    means = bias.means(equalized, images)
    histograms = ranges.histograms(equalized, qdq.activations(equalized, scheme), images)
    results: dict[str, Quantized] = {}
    tried: dict[str, float] = {}
    for method in ranges.CLIPS if clip == "auto" else (clip,):
        bounds = _clipped(histograms, method, scheme)
        corrected = bias.correct(equalized, bounds, images, means, scheme)
        results[method] = Quantized(corrected.model, equalized, bounds, method, tried, scheme)
        tried[method] = graph.sqnr(expected, corrected.logits)
    return results[max(tried, key=tried.__getitem__)]


def _clipped(
    histograms: dict[str, ranges.Histogram], method: str, scheme: Scheme
) -> dict[str, ranges.Range]:
    choose, grid = ranges.CLIPS[method], scheme.dialect.grid
    return {name: choose(histogram, grid) for name, histogram in histograms.items()}


def plain(model: onnx.ModelProto, images: np.ndarray, scheme: Scheme) -> onnx.ModelProto:
    """Return the int8 network that converters write by default.

    Tensors have the whole range that they have on `images`; nothing is equalized, clipped or
    corrected.
    """
    histograms = ranges.histograms(model, qdq.activations(model, scheme), images)
    return qdq.to_qdq(model, _clipped(histograms, "minmax", scheme), scheme)


def title(scheme: Scheme) -> str:
    """Return what reports call a scheme: "W8A8 per-channel", with ", full range" where it is."""
    weights = "per-channel" if scheme.per_channel else "per-tensor"
    is_full = scheme.dialect.saturates and not scheme.limited
    return f"W8A8 {weights}{', full range' if is_full else ''}"


def schemes(
    model: onnx.ModelProto,
    images: np.ndarray,
    clip: str = "auto",
    dialect: Dialect = DIALECTS["onnxruntime"],
) -> tuple[dict[str, onnx.ModelProto], dict[str, Quantized]]:
    """Return the network in every scheme of the report, and the `Quantized` of each W8A8 scheme.

    The names are "float", those of `title`, and for both kinds of weights "W8 per-tensor", which
    quantizes the weights only, and "W8A8 per-tensor, plain", which is of `plain`. Where the
    dialect's runtime saturates, weights are limited to what no CPU's kernels saturate with, but for
    those of the full range.
    """
    full = Scheme(limited=False, dialect=dialect)
    networks, quantized = {"float": model}, {}
    for per_channel in (False, True):
        name = "per-channel" if per_channel else "per-tensor"
        scheme = Scheme(per_channel, dialect.saturates, dialect)
        networks[f"W8A8 {name}, plain"] = plain(
            model, images, replace(full, per_channel=per_channel)
        )
        best = quantize(model, images, scheme, clip)
        means = bias.means(best.equalized, images)
        alone = bias.correct(best.equalized, {}, images, means, scheme)
        networks[f"W8 {name}"] = qdq.to_qdq(alone.model, {}, scheme)
        networks[title(scheme)] = best.to_qdq()
        quantized[title(scheme)] = best
    if dialect.saturates:
        best = quantize(model, images, full, best.clip)
        networks[title(full)] = best.to_qdq()
        quantized[title(full)] = best
    return networks, quantized
