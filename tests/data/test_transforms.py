"""Pixels: colour order, normalization, crops."""

import cv2
import numpy as np
import pytest

from data.transforms import BASECLS, Preprocessing


def test_colour_order_and_normalization_are_explicit():
    blue = np.zeros((8, 8, 3), np.uint8)
    blue[..., 0] = 255  # OpenCV's first channel
    plain = {"mean": (0, 0, 0), "std": (255, 255, 255), "size": 8}
    rgb = Preprocessing(color="RGB", **plain).normalize(blue)
    bgr = Preprocessing(color="BGR", **plain).normalize(blue)
    np.testing.assert_array_equal(rgb[:, 0, 0], [0, 0, 1])
    np.testing.assert_array_equal(bgr[:, 0, 0], [1, 0, 0])


def test_normalization_equals_its_definition(rng):
    image = rng.integers(0, 256, (6, 5, 3), np.uint8)
    for preprocessing, step in ((Preprocessing(), -1), (BASECLS, 1)):
        expected = (image[..., ::step] - np.array(preprocessing.mean)) / preprocessing.std
        found = preprocessing.normalize(image)
        assert found.dtype == np.float32 and found.flags.c_contiguous
        np.testing.assert_allclose(found, expected.transpose(2, 0, 1), atol=1e-6)


@pytest.mark.parametrize(
    "size, ratio, short", [(224, 0.875, 256), (320, 0.875, 366), (32, 1.0, 32), (224, 1.0, 224)]
)
def test_evaluation_resizes_the_short_side_and_crops_the_centre(rng, size, ratio, short):
    preprocessing = Preprocessing(size=size, crop_ratio=ratio)
    image = rng.integers(0, 256, (400, 500, 3), np.uint8)
    resized = cv2.resize(image, (round(500 * short / 400), short))
    top, left = (short - size) // 2, (resized.shape[1] - size) // 2
    expected = preprocessing.normalize(resized[top : top + size, left : left + size])
    np.testing.assert_array_equal(preprocessing.evaluation(image), expected)


@pytest.mark.parametrize("shape", [(500, 30), (30, 500), (1, 1), (7, 300), (224, 224)])
def test_any_shape_gives_the_size(rng, shape):
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    preprocessing = Preprocessing(size=64)
    assert preprocessing.evaluation(image).shape == (3, 64, 64)
