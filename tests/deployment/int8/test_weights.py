"""Weights as int8: the formula, its limits, and AVX2's 16-bit sums emulated."""

import numpy as np
import pytest

from deployment.int8 import weights
from tests.support import ROOT
from weights import checkpoint


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


# ---------------------------------------------------------------- AVX2's 16-bit sums


def multiply_as_avx2(activations, kernel):
    """uint8 [N, K] by int8 [O, K]: vpmaddubsw adds each two products in 16 bits, saturating, and
    vpmaddwd adds those sums in 32 bits."""
    products = activations[:, None].astype(np.int32) * kernel[None].astype(np.int32)
    pairs = products[..., 0::2] + products[..., 1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(-1)


def pointwise_layers():
    """The real 1x1 kernels of Apple's MobileOne-S0, [O, I]."""
    path = ROOT.parent / "shared" / "data" / "mobileone_s0_deploy.npz"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    state = checkpoint.read(path).state_dict
    kernels = [v for k, v in state.items() if k.endswith("weight") and v.ndim == 4]
    return [k[:, :, 0, 0] for k in kernels if k.shape[2] == 1 and k.shape[1] % 2 == 0]


def test_real_layers_saturate_with_the_full_range_and_not_with_ours(rng):
    layers = pointwise_layers()
    saturated = 0
    for kernel in layers:
        # as bright as activations get, and at random
        inputs = np.full((2, kernel.shape[1]), 255, np.uint8)
        inputs[1] = rng.integers(0, 256, kernel.shape[1])
        full = weights.quantize(kernel, pairs=False).values
        exact = inputs.astype(np.int64) @ full.T.astype(np.int64)
        saturated += (multiply_as_avx2(inputs, full) != exact).any()
        for order in (slice(None), rng.permutation(kernel.shape[1])):  # whichever are neighbours
            ours = weights.quantize(kernel).values[:, order]
            exact = inputs.astype(np.int64) @ ours.T.astype(np.int64)
            assert np.array_equal(multiply_as_avx2(inputs, ours), exact)
    assert saturated > len(layers) / 2


def test_the_limit_is_tight():
    """One more than the limit saturates."""
    inputs = np.full((1, 2), 255, np.uint8)
    assert multiply_as_avx2(inputs, np.array([[65, 63]], np.int8)) == 255 * 128
    assert multiply_as_avx2(inputs, np.array([[65, 64]], np.int8)) < 255 * 129
