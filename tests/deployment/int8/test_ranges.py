"""Ways to clip, on tensors whose best range is known."""

import numpy as np
import pytest

from deployment.int8 import ranges
from deployment.int8.dialects import UINT8


def histogram(values):
    counts, _ = np.histogram(values, 4096, (values.min(), values.max()))
    return ranges.Histogram(float(values.min()), float(values.max()), counts)


@pytest.fixture
def outlier(rng):
    """A ReLU's output up to 4 or so, and one value of 40 in 100,000."""
    return np.append(np.abs(rng.standard_normal(100_000)), 40.0)


def error(values, bounds):
    scale, zero = UINT8.scale_and_zero(*bounds)
    q = np.clip(np.rint(values / scale) + zero, 0, 255)
    return np.square((q - zero) * scale - values).mean()


def test_all_values(outlier):
    assert ranges.minmax(histogram(outlier)) == (outlier.min(), 40)


def test_percentile(outlier):
    low, high = ranges.percentile(histogram(outlier))
    assert low == 0 and np.quantile(outlier, 0.9999) <= high < 5
    low, high = ranges.percentile(histogram(-outlier))
    assert -5 < low <= np.quantile(-outlier, 0.0001) and high <= 0.01


def test_mse_is_the_best_of_all_that_were_tried(outlier):
    for values in (outlier, -outlier, np.append(outlier, -outlier / 3)):
        whole = values.min(), values.max()
        found = ranges.mse(histogram(values))
        least = min(error(values, np.multiply(whole, f)) for f in np.linspace(0.2, 1))
        assert error(values, found) <= 1.02 * least < error(values, whole)


def test_kl_clips_what_is_rare_and_keeps_what_is_not(outlier, rng):
    assert ranges.kl(histogram(outlier))[1] < 20
    even = rng.uniform(-1, 1, 100_000)
    low, high = ranges.kl(histogram(even))
    assert low < -0.9 and high > 0.9
    # nor are the zeros of a ReLU, which any range holds exactly, a reason to clip
    positive = np.maximum(rng.standard_normal(100_000), 0)
    assert ranges.kl(histogram(positive))[1] > 0.8 * positive.max()


@pytest.mark.parametrize("way", ranges.CLIPS)
def test_a_constant_tensor(way):
    for value in (0.0, 2.0, -2.0):
        bounds = ranges.CLIPS[way](histogram(np.full(10, value)))
        scale, zero = UINT8.scale_and_zero(*bounds)
        assert np.isfinite(scale) and scale > 0
