"""A floor of accuracy: keep as few layers in float as it needs, chosen by measured sensitivity."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import onnx
from tqdm import tqdm

from . import bias, calibration, graph, qdq
from .ptq import Quantized

SENSITIVITY_IMAGES = 16  # each layer is measured on as many


class Outcome(NamedTuple):
    """Result of a search.

    Attributes:
        quantized: network with the fewest layers in float that hold the floor; if none do, with all
            but one in float.
        in_float: its layers in float, the most sensitive first.
        sensitivity: layer -> see `sensitivity`.
        quality: measured quality of `quantized`.
        holds: whether that is at least the floor.
        measurements: how many networks were measured.
    """

    quantized: Quantized
    in_float: list[str]
    sensitivity: dict[str, float]
    quality: float
    holds: bool
    measurements: int


def sensitivity(quantized: Quantized, images: np.ndarray) -> dict[str, float]:
    """Return layer -> SQNR of the logits in dB when only that layer is int8, the lowest first.

    Its weights and its input are rounded, and its bias is corrected. Each layer costs two passes
    over `SENSITIVITY_IMAGES` of the images.
    """
    images = calibration.evenly(images, SENSITIVITY_IMAGES)
    model, layers = quantized.equalized, graph.layers(quantized.equalized)
    expected, means = graph.logits(model, images), bias.means(model, images)
    names = {node.name for node in layers}
    # whether a runtime can compute the layer alone in int8 does not matter here
    dialect = replace(quantized.scheme.dialect, behind_layers=False)
    noise = {}
    for node in tqdm(layers, desc="sensitivity", unit="layer", leave=False, disable=None):
        others = frozenset(names - {node.name})
        alone = replace(quantized.scheme, dialect=dialect, in_float=others)
        read = qdq.quantized_input(model, node, quantized.bounds)
        bounds = {read: quantized.bounds[read]} if read is not None else {}
        corrected = bias.correct_layer(model, node, bounds, images, means, alone)
        logits = graph.logits(qdq.to_qdq(corrected, bounds, alone), images)
        noise[node.name] = graph.sqnr(expected, logits)
    return dict(sorted(noise.items(), key=lambda item: item[1]))


def keep_in_float(quantized: Quantized, names: list[str], images: np.ndarray) -> Quantized:
    """Return how to quantize a network with some layers in float, its biases corrected anew."""
    scheme = replace(quantized.scheme, in_float=frozenset(names))
    model = quantized.equalized
    bounds = {name: quantized.bounds[name] for name in qdq.activations(model, scheme)}
    corrected = bias.correct(model, bounds, images, bias.means(model, images), scheme)
    return quantized._replace(model=corrected.model, bounds=bounds, scheme=scheme)


def hold(
    quantized: Quantized,
    images: np.ndarray,
    measure: Callable[[onnx.ModelProto], float],
    floor: float,
) -> Outcome:
    """Find the fewest layers to keep in float so that the measured quality reaches a floor.

    In the order of their sensitivity, 1, 2, 4 ... layers are tried, then numbers between the last
    two; then each of the chosen layers, the least sensitive first, is tried in int8 again. With n
    layers chosen of L, about 2 log2(n) + n networks are measured, and at most 2 log2(L) + L.

    Args:
        quantized: network with all layers in int8.
        images: calibration images, float32 [N, C, H, W], normalized.
        measure: returns the quality of an int8 network, more being better.
        floor: the least quality.
    """
    least = floor - 1e-9  # a difference of two percentages may be less by a rounding
    qualities: dict[frozenset[str], float] = {}  # the networks would take gigabytes

    def network(names: list[str]) -> Quantized:
        return keep_in_float(quantized, names, images) if names else quantized

    def quality(names: list[str]) -> float:
        key = frozenset(names)
        if key not in qualities:
            qualities[key] = measure(network(names).to_qdq())
        return qualities[key]

    def holds(names: list[str]) -> bool:
        return quality(names) >= least

    ranking: dict[str, float] = {}
    chosen: list[str] = []
    if not holds(chosen):
        ranking = sensitivity(quantized, images)
        order = [*ranking]
        chosen = order[: _fewest(lambda count: holds(order[:count]), len(order) - 1)]
        for name in chosen[::-1] if holds(chosen) else []:
            if holds(fewer := [other for other in chosen if other != name]):
                chosen = fewer
    reached = quality(chosen)
    return Outcome(network(chosen), chosen, ranking, reached, reached >= least, len(qualities))


def _fewest(holds: Callable[[int], bool], most: int) -> int:
    """Return the least number from 1 to `most` that holds, and `most` if none does."""
    fails, number = 0, 1
    while number < most and not holds(number):
        fails, number = number, 2 * number
    number = min(number, most)
    while number - fails > 1:
        middle = (fails + number) // 2
        if holds(middle):
            number = middle
        else:
            fails = middle
    return number
