"""Post-training quantization, put together: equalization, clipping, bias correction."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import onnx

from . import bias, equalize, graph, qdq, ranges


class Quantized(NamedTuple):
    """What `qdq.to_qdq` needs, and how it was found.

    Attributes:
        model: float, equalized; biases corrected for int8 weights and activations.
        equalized: the same before the correction.
        bounds: of the activations.
        clip: how they were chosen.
        tried: way to clip -> SQNR of the logits on the calibration images in dB.
        per_channel, pairs: of the weights, see `weights.quantize`.
    """

    model: onnx.ModelProto
    equalized: onnx.ModelProto
    bounds: dict[str, ranges.Range]
    clip: str
    tried: dict[str, float]
    per_channel: bool
    pairs: bool

    def to_qdq(self) -> onnx.ModelProto:
        """The int8 network."""
        return qdq.to_qdq(self.model, self.bounds, self.per_channel, self.pairs)


def quantize(
    model: onnx.ModelProto,
    images: np.ndarray,
    per_channel: bool = True,
    clip: str = "auto",
    pairs: bool = True,
) -> Quantized:
    """Find how to quantize a float network in deploy form.

    Args:
        model: as `onnx_graph.to_onnx` makes them.
        images: float32 [N, 3, H, W], normalized, to calibrate on.
        per_channel: for weights with a scale for each output channel; else one a layer.
        clip: one of `ranges.CLIPS`, or "auto": that with the highest SQNR of the logits on
            `images`, after bias correction.
        pairs: for weights that no CPU's kernels saturate with, see `weights`.
    """
    if per_channel:
        equalized = equalize.by_activations(model, images)
    else:
        equalized = equalize.by_weights(model)
    equalize.assert_exact(model, equalized, images)
    expected = graph.logits(equalized, images)
    means = bias.means(equalized, images)
    held = ranges.histograms(equalized, qdq.activations(equalized), images)
    results, tried = {}, {}
    for way in ranges.CLIPS if clip == "auto" else (clip,):
        bounds = {name: ranges.CLIPS[way](histogram) for name, histogram in held.items()}
        corrected = bias.correct(equalized, bounds, images, means, per_channel, pairs)
        results[way] = Quantized(corrected.model, equalized, bounds, way, tried, per_channel, pairs)
        tried[way] = graph.sqnr(expected, corrected.logits)
    return results[max(tried, key=tried.get)]


def schemes(
    model: onnx.ModelProto, images: np.ndarray, clip: str = "auto"
) -> tuple[dict[str, onnx.ModelProto], dict[str, Quantized]]:
    """A network in every scheme that is reported, and how those named "W8A8 ..." were found.

    {"float": ..., "W8A8 per-tensor, plain": ..., "W8 per-tensor": ..., "W8A8 per-tensor": ...} and
    so on: W8 has int8 weights alone, and the plain ones the whole range of each tensor and weight
    without any of what is done here, as a converter makes them unless told otherwise. "W8A8
    per-channel, full range" is not limited to what every CPU's kernels are exact with.
    """
    held = ranges.histograms(model, qdq.activations(model), images)
    whole = {name: ranges.minmax(histogram) for name, histogram in held.items()}
    networks, found = {"float": model}, {}
    for per_channel in (False, True):
        name = "per-channel" if per_channel else "per-tensor"
        networks[f"W8A8 {name}, plain"] = qdq.to_qdq(model, whole, per_channel, pairs=False)
        best = quantize(model, images, per_channel, clip)
        means = bias.means(best.equalized, images)
        alone = bias.correct(best.equalized, {}, images, means, per_channel)
        networks[f"W8 {name}"] = qdq.to_qdq(alone.model, {}, per_channel)
        networks[f"W8A8 {name}"] = best.to_qdq()
        found[f"W8A8 {name}"] = best
    full = quantize(model, images, True, best.clip, pairs=False)
    networks["W8A8 per-channel, full range"] = full.to_qdq()
    found["W8A8 per-channel, full range"] = full
    return networks, found
