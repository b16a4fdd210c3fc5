"""Post-training quantization: equalization, clipping and bias correction in one function."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from . import bias, equalize, graph, qdq, ranges


class Quantized(NamedTuple):
    """Arguments of `qdq.to_qdq` for a network, and how they were chosen.

    Attributes:
        model: equalized float network, its biases corrected for int8 weights and activations.
        equalized: equalized float network before the bias correction.
        bounds: ranges of the activations.
        clip: method that chose the ranges.
        tried: clipping method -> SQNR of the logits on the calibration images in dB.
        per_channel, pairs: how weights are rounded, see `weights.quantize`.
    """

    model: onnx.ModelProto
    equalized: onnx.ModelProto
    bounds: dict[str, ranges.Range]
    clip: str
    tried: dict[str, float]
    per_channel: bool
    pairs: bool

    def to_qdq(self) -> onnx.ModelProto:
        """Return the int8 network."""
        return qdq.to_qdq(self.model, self.bounds, self.per_channel, self.pairs)


def quantize(
    model: onnx.ModelProto,
    images: np.ndarray,
    per_channel: bool = True,
    clip: str = "auto",
    pairs: bool = True,
) -> Quantized:
    """Choose how to quantize a float network in deploy form.

    Args:
        model: network made by `onnx_graph.to_onnx`.
        images: calibration images, float32 [N, 3, H, W], normalized.
        per_channel: whether each output channel's weights have a scale of their own; otherwise
            there is one scale per layer.
        clip: one of `ranges.CLIPS`, or "auto" for the one with the highest SQNR of the logits on
            `images` after bias correction.
        pairs: whether to limit the weights so that no CPU's kernels saturate, see `weights`.
    """
    if per_channel:
        equalized = equalize.by_activations(model, images)
    else:
        equalized = equalize.by_weights(model)
    equalize.assert_exact(model, equalized, images)
    expected = graph.logits(equalized, images)
    means = bias.means(equalized, images)
    histograms = ranges.histograms(equalized, qdq.activations(equalized), images)
    results, tried = {}, {}
    for method in ranges.CLIPS if clip == "auto" else (clip,):
        bounds = {name: ranges.CLIPS[method](counts) for name, counts in histograms.items()}
        corrected = bias.correct(equalized, bounds, images, means, per_channel, pairs)
        results[method] = Quantized(
            corrected.model, equalized, bounds, method, tried, per_channel, pairs
        )
        tried[method] = graph.sqnr(expected, corrected.logits)
    return results[max(tried, key=tried.get)]


def schemes(
    model: onnx.ModelProto, images: np.ndarray, clip: str = "auto"
) -> tuple[dict[str, onnx.ModelProto], dict[str, Quantized]]:
    """Return the network in every scheme of the report, and the `Quantized` of each W8A8 scheme.

    The names are "float", "W8A8 per-tensor, plain", "W8 per-tensor", "W8A8 per-tensor" and so on.
    W8 schemes quantize the weights only. Plain schemes use the whole range of each tensor and
    weight without equalization, clipping and bias correction, as converters do by default. In "W8A8
    per-channel, full range" the weights are not limited to what no CPU's kernels saturate with.
    """
    histograms = ranges.histograms(model, qdq.activations(model), images)
    whole = {name: ranges.minmax(histogram) for name, histogram in histograms.items()}
    networks, quantized = {"float": model}, {}
    for per_channel in (False, True):
        name = "per-channel" if per_channel else "per-tensor"
        networks[f"W8A8 {name}, plain"] = qdq.to_qdq(model, whole, per_channel, pairs=False)
        best = quantize(model, images, per_channel, clip)
        means = bias.means(best.equalized, images)
        alone = bias.correct(best.equalized, {}, images, means, per_channel)
        networks[f"W8 {name}"] = qdq.to_qdq(alone.model, {}, per_channel)
        networks[f"W8A8 {name}"] = best.to_qdq()
        quantized[f"W8A8 {name}"] = best
    full = quantize(model, images, True, best.clip, pairs=False)
    networks["W8A8 per-channel, full range"] = full.to_qdq()
    quantized["W8A8 per-channel, full range"] = full
    return networks, quantized
