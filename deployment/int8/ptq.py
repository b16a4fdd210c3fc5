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
        per_channel: whether the weights have a scale for each output channel.
    """

    model: onnx.ModelProto
    equalized: onnx.ModelProto
    bounds: dict[str, ranges.Range]
    clip: str
    tried: dict[str, float]
    per_channel: bool

    def to_qdq(self) -> onnx.ModelProto:
        """The int8 network."""
        return qdq.to_qdq(self.model, self.bounds, self.per_channel)


def quantize(
    model: onnx.ModelProto, images: np.ndarray, per_channel: bool = True, clip: str = "auto"
) -> Quantized:
    """Find how to quantize a float network in deploy form.

    Args:
        model: as `onnx_graph.to_onnx` makes them.
        images: float32 [N, 3, H, W], normalized, to calibrate on.
        per_channel: for weights with a scale for each output channel; else one a layer.
        clip: one of `ranges.CLIPS`, or "auto": that with the highest SQNR of the logits on
            `images`, after bias correction.
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
        corrected = bias.correct(equalized, bounds, images, means, per_channel)
        results[way] = Quantized(corrected.model, equalized, bounds, way, tried, per_channel)
        tried[way] = graph.sqnr(expected, corrected.logits)
    return results[max(tried, key=tried.get)]


def weights_only(model: onnx.ModelProto, images: np.ndarray, per_channel: bool) -> onnx.ModelProto:
    """An equalized float network with int8 weights and biases corrected for them."""
    corrected = bias.correct(model, {}, images, bias.means(model, images), per_channel)
    return qdq.to_qdq(corrected.model, {}, per_channel)


def plain(model: onnx.ModelProto, images: np.ndarray, per_channel: bool) -> onnx.ModelProto:
    """What a network becomes without any of this: the whole range of each tensor and weight."""
    held = ranges.histograms(model, qdq.activations(model), images)
    bounds = {name: ranges.minmax(histogram) for name, histogram in held.items()}
    return qdq.to_qdq(model, bounds, per_channel, pairs=False)
