"""Networks that take other images: exact in every family, at the borders too."""

import megengine as mge
import numpy as np
import pytest

from data.transforms import BASECLS, Preprocessing
from deployment.input_format import adapt, describe, in_color_order, raw_pixels
from tests.deployment.networks import SMALL

RGB = Preprocessing()
WHITE = np.random.default_rng(0).integers(200, 256, (2, 32, 32, 3), np.uint8)  # OpenCV's pictures


def logits(model, preprocessing):
    model.eval()
    return model(mge.Tensor(np.stack([preprocessing.normalize(i) for i in WHITE]))).numpy()


@pytest.mark.parametrize("kind", SMALL)
def test_every_family_in_deploy_form(kind, network):
    model = network(kind)
    expected = logits(model, RGB)
    for file_input in (raw_pixels(RGB), raw_pixels(in_color_order(RGB, "BGR")), BASECLS):
        adapted = adapt(model, RGB, file_input)
        error = np.abs(logits(adapted, file_input) - expected).max()
        assert error <= 1e-5 * np.abs(expected).max()
    np.testing.assert_array_equal(logits(model, RGB), expected)  # left as it was


def test_a_mean_in_the_bias_would_be_wrong_at_the_borders(network):
    """What `adapt` must not do, shown to make a difference that these tests see."""
    model = network("RepVGG")
    file_input = raw_pixels(RGB)
    adapted = adapt(model, RGB, file_input)
    conv = adapted.stage0.reparam
    kernel, shift = conv.weight.numpy(), conv.shift.numpy()
    conv.bias = conv.bias + mge.Tensor((kernel * shift).sum((1, 2, 3)).reshape(1, -1, 1, 1))
    conv.shift = mge.Tensor(shift * 0)
    expected = logits(model, RGB)
    assert np.abs(logits(adapted, file_input) - expected).max() > 1e-3 * np.abs(expected).max()


def test_a_colour_order_is_its_own_inverse():
    assert in_color_order(in_color_order(RGB, "BGR"), "RGB") == RGB
    assert in_color_order(RGB, "RGB") is RGB
    assert in_color_order(RGB, "BGR").mean == (103.53, 116.28, 123.675)


def test_the_note_is_a_preprocessing():
    assert Preprocessing(**describe(raw_pixels(BASECLS), (96, 64))) == Preprocessing(
        "BGR", (0, 0, 0), (1, 1, 1), size=64
    )
