"""Round weights to int8, with limits under which no CPU's kernels saturate.

On x86 CPUs without VNNI instructions, AVX2's vpmaddubsw multiplies two neighbouring pairs of an
unsigned activation (0 to 255) and a signed weight and adds them in 16 bits, saturating. No sum can
exceed 16 bits if the two largest weights of an output channel sum to at most 128, and the two most
negative ones to at least -128: 255 * 128 = 32,640 <= 32,767, whichever two are neighbours. In the
worst case that is half of the range, the 7 bits that other tools use for all weights, but channels
with one outstanding weight keep nearly the whole range.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LARGEST = 127  # -128 is not used: the range is symmetric
LARGEST_PAIR = 128


class Int8(NamedTuple):
    """Integers and scales; values * scale are the weights, with output channels along axis 0."""

    values: np.ndarray  # int8, in the shape of the weights
    scale: np.ndarray  # float32 [O], or [] for one scale of all channels

    @property
    def weights(self) -> np.ndarray:
        """Weights as the int8 network uses them, float32."""
        return self.values * _along_channels(self.scale, self.values.ndim)


def quantize(
    weights: np.ndarray,
    per_channel: bool = True,
    pairs: bool = True,
    at_least: np.ndarray | float = 0.0,
) -> Int8:
    """Round weights [O, ...] to the nearest multiples of a scale, half to even.

    values = clip(rint(weights / scale), -127, 127), in float64 with the float32 scale.

    Args:
        weights: float32 [O, I, kh, kw] or [O, I], finite.
        per_channel: whether each output channel has a scale of its own; otherwise all share one.
        pairs: whether to limit the sums of pairs, see the module's documentation, and not only each
            weight to 127.
        at_least: lower bound of the scales, [O] or [].
    """
    scale = scales(weights, per_channel, pairs, at_least)
    steps = weights / _along_channels(scale, weights.ndim).astype(np.float64)
    values = np.clip(np.rint(steps), -LARGEST, LARGEST).astype(np.int8)
    assert not pairs or largest_pair(values) <= LARGEST_PAIR
    return Int8(values, scale)


def scales(
    weights: np.ndarray,
    per_channel: bool = True,
    pairs: bool = True,
    at_least: np.ndarray | float = 0.0,
) -> np.ndarray:
    """Return the smallest scales within the limits and not below `at_least`, float32 [O] or [].

    scale = max(max |w| / 127, (p1 + p2) / 128, -(n1 + n2) / 128) of a channel's weights w, with p1
    and p2 its two largest and n1 and n2 its two smallest ones, where those of the wrong sign are 0;
    without `pairs`, the first term alone. A scale that is no normal number becomes 1. If not
    `per_channel`, the scale is the largest of all channels. Scales are computed in float64 and
    rounded up to float32, so that the limits hold after the weights are rounded.
    """
    flat = weights.reshape(len(weights), -1).astype(np.float64)
    needed = np.abs(flat).max(1) / LARGEST
    if pairs:
        needed = np.maximum(needed, _pair_sums(flat) / LARGEST_PAIR)
    needed = np.maximum(needed, at_least)
    needed = needed if per_channel else needed.max()
    scale = needed.astype(np.float32)
    scale = np.where(scale < needed, np.nextafter(scale, np.float32(np.inf)), scale)
    return np.where(scale >= np.finfo(np.float32).tiny, scale, np.float32(1))


def largest_pair(values: np.ndarray) -> int:
    """Return the largest sum of two weights of one sign in an output channel of int8 [O, ...]."""
    return int(_pair_sums(values.reshape(len(values), -1).astype(np.int64)).max())


def _pair_sums(flat: np.ndarray) -> np.ndarray:
    """Return the larger of the sums of the two largest and the two most negative values, [O]."""
    ordered = np.sort(flat, axis=1)
    highest, lowest = ordered[:, -2:].clip(min=0), ordered[:, :2].clip(max=0)
    return np.maximum(highest.sum(1), -lowest.sum(1))


def _along_channels(scale: np.ndarray, dimensions: int) -> np.ndarray:
    return scale.reshape(-1, *[1] * (dimensions - 1))
