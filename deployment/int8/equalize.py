"""Cross-layer equalization: rescale channels between two layers without changing the network.

For s > 0, relu(x / s) = relu(x) / s, and the mean over a feature map commutes with s too, so that a
layer's output channel can be divided by s if the next layer's weights for it are multiplied by s.
Every s is a power of two, which changes exponents only: the equalized network computes the same
bits.

Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction, ICCV
2019 (arXiv 1906.04721), for `by_weights`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto

from utils import UserError

from . import graph

_HOMOGENEOUS = (
    "Relu",
    "GlobalAveragePool",
    "Flatten",
)  # operators that commute with a positive factor per channel
_ROUNDS = 20
_DEAD = 1e-3  # fraction of the largest range; a smaller one may be due to few images


class Chain(NamedTuple):
    """Two layers with only homogeneous operators, and no other consumer, between them."""

    first: NodeProto
    second: NodeProto


def chains(model: onnx.ModelProto) -> list[Chain]:
    """Return all chains of a network.

    They lie between the convolutions of RepVGG and MobileOne and in their heads, in RepGhost's
    ghost modules and in squeeze-and-excitation, but not across GELU (RepViT's blocks) or a
    shortcut.
    """
    users = graph.consumers(model)
    pairs = []
    for first in graph.layers(model):
        following = users.get(first.output[0], [])
        while len(following) == 1 and following[0].op_type in _HOMOGENEOUS:
            following = users.get(following[0].output[0], [])
        if len(following) == 1 and following[0].op_type in graph.LAYERS:
            pairs.append(Chain(first, following[0]))
    return pairs


def by_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """Equalize for weights with one scale per layer.

    A channel's range becomes sqrt(first * second) in both layers of a chain, where first and second
    are their largest weights for it. Most layers are in two chains, so this is repeated in rounds.
    """
    weights = {k: v.astype(np.float64) for k, v in graph.weights(model).items()}
    for _ in range(_ROUNDS):
        for chain in chains(model):
            first = np.abs(weights[chain.first.input[1]])
            largest = first.max(tuple(range(1, first.ndim)))
            _divide(chain, weights, _sqrt_of_ratio(largest, _by_input(chain, weights)))
    return graph.with_weights(model, weights)


def by_activations(model: onnx.ModelProto, images: np.ndarray) -> onnx.ModelProto:
    """Equalize for weights with one scale per channel and activations with one scale per tensor.

    s = sqrt(activation / weight) balances a channel's largest activation on `images` and the next
    layer's largest weight for it. The weights of a depthwise layer have a scale for each of these
    channels anyway, so that s = activation equalizes the activations completely.
    """
    pairs = chains(model)
    weights = {k: v.astype(np.float64) for k, v in graph.weights(model).items()}
    largest = _largest_activations(model, [chain.second.input[0] for chain in pairs], images)
    for chain in pairs:
        activation = largest[chain.second.input[0]]
        depthwise = graph.group(chain.second) == len(activation) > 1
        weight = np.ones(len(activation)) if depthwise else _by_input(chain, weights)
        s = _floor(activation) if depthwise else _sqrt_of_ratio(activation, weight)
        _divide(chain, weights, s)
    return graph.with_weights(model, weights)


def assert_exact(model: onnx.ModelProto, equalized: onnx.ModelProto, images: np.ndarray) -> None:
    """Raise UserError unless both networks compute the same bits."""
    before, after = (graph.logits(m, images[: graph.BATCH]) for m in (model, equalized))
    if not np.array_equal(before, after):
        worst = np.abs(before - after).max() / np.abs(before).max()
        raise UserError(
            f"equalization has changed the float network, by {worst:.1e} of the largest logit: its "
            "weights are at the limits of float32; use others"
        )


def _largest_activations(
    model: onnx.ModelProto, names: Sequence[str], images: np.ndarray
) -> dict[str, np.ndarray]:
    """Return tensor -> largest absolute values over images and positions, float64 [C]."""
    largest: dict[str, np.ndarray] = {}
    for batch in graph.run(model, images, names, "equalization"):
        for name, value in zip(names, batch, strict=True):
            current = np.abs(value).max((0, *range(2, value.ndim))).astype(np.float64)
            largest[name] = np.maximum(current, largest.get(name, 0))
    return largest


def _by_input(chain: Chain, weights: dict[str, np.ndarray]) -> np.ndarray:
    """Return the second layer's largest weight for each of its input channels."""
    kernel = np.abs(_grouped(chain, weights[chain.second.input[1]]))
    return kernel.max((1, *range(3, kernel.ndim))).reshape(-1)


def _grouped(chain: Chain, kernel: np.ndarray) -> np.ndarray:
    """Reshape a kernel [O, I/G, ...] to [G, O/G, I/G, ...]."""
    return kernel.reshape(graph.group(chain.second), -1, *kernel.shape[1:])


def _floor(ranges: np.ndarray) -> np.ndarray:
    return np.maximum(ranges, _DEAD * ranges.max() if ranges.any() else 1)


def _sqrt_of_ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.sqrt(_floor(first) / _floor(second))


def _divide(chain: Chain, weights: dict[str, np.ndarray], s: np.ndarray) -> None:
    """Divide the channels of a chain by `s`, rounded to powers of two up to a common factor."""
    logarithm = np.log2(s)
    s = np.exp2(np.rint(logarithm - logarithm.mean()))
    kernel, *bias = chain.first.input[1:]
    weights[kernel] = weights[kernel] / s.reshape(-1, *[1] * (weights[kernel].ndim - 1))
    for name in bias:
        weights[name] = weights[name] / s
    name = chain.second.input[1]
    kernel = _grouped(chain, weights[name])
    factors = s.reshape(kernel.shape[0], 1, -1, *[1] * (kernel.ndim - 3))
    weights[name] = (kernel * factors).reshape(weights[name].shape)
