"""Weights as int8: the formula, its limits, and AVX2's 16-bit sums emulated."""

import numpy as np
import pytest

from deployment.int8 import weights


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("pairs", [True, False])
@pytest.mark.parametrize("shape", [(8, 5, 3, 3), (6, 1, 3, 3), (7, 40), (3, 1)])
def test_every_weight_is_within_half_a_step(rng, shape, per_channel, pairs):
    w = rng.standard_t(3, shape).astype(np.float32)  # long tails
    int8 = weights.quantize(w, per_channel, pairs)
    assert int8.values.shape == shape and int8.values.dtype == np.int8
    assert int8.scale.shape == ((shape[0],) if per_channel else ()) and int8.values.min() >= -127
    scale = int8.scale.reshape(-1, *[1] * (len(shape) - 1))
    assert (np.abs(int8.weights - w) <= scale * 0.5001).all()
    if not pairs:
        assert np.abs(int8.values).max() == 127
    elif shape[-1] > 1:
        assert 127 <= weights.largest_pair(int8.values) <= weights.LARGEST_PAIR


def test_half_way_values_keep_to_the_limit():
    """Where the two largest lie half-way between two integers, both could be rounded up."""
    for first in range(64):
        w = np.array([[first + 0.5, 127.5 - first, -first - 0.5, first - 127.5, 0.1]], np.float32)
        for factor in (1, 0.1, 1 / 3, 7e-6):
            assert weights.largest_pair(weights.quantize(w * np.float32(factor)).values) <= 128


def test_zeros_and_lower_bounds():
    zeros = weights.quantize(np.zeros((2, 3), np.float32))
    assert zeros.scale.tolist() == [1, 1] and not zeros.values.any()
    bounded = weights.quantize(np.ones((2, 3), np.float32), at_least=np.array([0.5, 0]))
    assert bounded.scale.tolist() == [0.5, 1 / 64] and bounded.values[0].tolist() == [2, 2, 2]
