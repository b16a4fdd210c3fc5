"""Weights as int8: a scale for each output channel or for all, small enough for every CPU.

On x86 CPUs without VNNI instructions, AVX2's vpmaddubsw multiplies two neighbouring pairs of an
unsigned activation (0 to 255) and a signed weight and adds them in 16 bits, saturating. No sum can
exceed 16 bits if the two largest weights of an output channel sum to 128 at most, and the two most
negative ones to -128 at least: 255 * 128 = 32,640 <= 32,767, whichever two are neighbours. That is
half of the range in the worst case, the 7 bits that other tools take for all, but channels with one
outstanding weight keep nearly all of it.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

LARGEST = 127  # -128 is not used: the range is symmetric
LARGEST_PAIR = 128


class Int8(NamedTuple):
    """values * scale are the weights, with the scale of each output channel along axis 0."""

    values: np.ndarray  # int8, as the weights are
    scale: np.ndarray  # float32 [O], or [] for all channels

    @property
    def weights(self) -> np.ndarray:
        """float32: what the int8 network computes with."""
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
        per_channel: a scale for each output channel; else one for all.
        pairs: keep to the pairs' limit, see above; else only to 127.
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
    """The smallest scales that fit and are `at_least` so large, float32 [O] or []; 1 if that is 0.

    scale = max(max |w| / 127, (p1 + p2) / 128, -(n1 + n2) / 128) of a channel's weights w, with p1
    and p2 its two largest and n1 and n2 its two smallest ones, those of the wrong sign being 0; the
    first term alone without `pairs`. The largest of all channels if not `per_channel`. Computed in
    float64 and rounded up to float32, so that the limits hold after the rounding of weights.
    """
    flat = weights.reshape(len(weights), -1).astype(np.float64)
    needed = np.abs(flat).max(1) / LARGEST
    if pairs:
        needed = np.maximum(needed, _pair_sums(flat) / LARGEST_PAIR)
    needed = np.maximum(needed, at_least)
    needed = needed if per_channel else needed.max()
    scale = needed.astype(np.float32)
    scale = np.where(scale < needed, np.nextafter(scale, np.float32(np.inf)), scale)
    return np.where(scale > 0, scale, np.float32(1))


def largest_pair(values: np.ndarray) -> int:
    """The largest sum of two weights of one sign in one output channel, of int8 [O, ...]."""
    return int(_pair_sums(values.reshape(len(values), -1).astype(np.int64)).max())


def _pair_sums(flat: np.ndarray) -> np.ndarray:
    """[O, K] -> [O]: the larger of the sums of the two largest and the two most negative."""
    ordered = np.sort(flat, axis=1)
    highest, lowest = ordered[:, -2:].clip(min=0), ordered[:, :2].clip(max=0)
    return np.maximum(highest.sum(1), -lowest.sum(1))


def _along_channels(scale: np.ndarray, dimensions: int) -> np.ndarray:
    return scale.reshape(-1, *[1] * (dimensions - 1))
