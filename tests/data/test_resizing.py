"""Resizing for training: nearly Pillow's antialiased result, in OpenCV's time."""

import cv2
import numpy as np
import pytest

from data import resizing
from data.augment import Augmentation, augment
from data.transforms import Preprocessing


@pytest.fixture
def photograph(rng):
    """A picture with edges and texture, as photographs have, uint8 [H, W, 3]."""
    image = cv2.resize(rng.integers(0, 256, (24, 32, 3), np.uint8), (512, 384))
    noise = rng.normal(0, 20, image.shape)
    return np.clip(image + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("width, height", [(256, 192), (300, 220), (400, 300), (200, 180)])
def test_antialiasing_is_near_to_pillows(photograph, width, height):
    expected = resizing.by_pillow(photograph, width, height, "bilinear").astype(float)

    def distance(image):
        return np.sqrt(((image - expected) ** 2).mean())

    fast = distance(resizing.antialiased(photograph, width, height, "bilinear"))
    plain = distance(resizing.by_opencv(photograph, width, height, "bilinear"))
    assert fast < 0.6 * plain


def test_half_the_size_is_pillows_but_for_rounding(photograph):
    expected = resizing.by_pillow(photograph, 256, 192, "bilinear").astype(int)
    found = resizing.antialiased(photograph, 256, 192, "bilinear")
    assert abs(found[2:-2, 2:-2] - expected[2:-2, 2:-2]).max() <= 1


def test_enlarging_is_opencvs(photograph):
    small = photograph[:100, :90]
    for how in ("bilinear", "bicubic"):
        expected = resizing.by_opencv(small, 128, 128, how)
        np.testing.assert_array_equal(resizing.antialiased(small, 128, 128, how), expected)


def test_much_smaller_is_the_mean_of_all_pixels():
    stripes = np.zeros((512, 512, 3), np.uint8)
    stripes[:, ::2] = 255
    assert abs(resizing.antialiased(stripes, 64, 64, "bilinear").astype(int) - 128).max() <= 1


@pytest.mark.parametrize("backend, antialiased", [("pillow", True), ("opencv", False)])
def test_training_crops_are_antialiased_where_the_preprocessing_says_pillow(
    rng, backend, antialiased
):
    stripes = np.zeros((300, 300, 3), np.uint8)
    stripes[:, ::2] = 255
    out = np.empty((160, 160, 3), np.uint8)
    whole = Augmentation(crop_scale=(1.0, 1.0), flip=0)
    spread = []
    for _ in range(5):
        augment(stripes, rng, whole, Preprocessing(size=160, resize_backend=backend), out)
        spread.append(out.astype(float).std())
    assert (max(spread) < 40) == antialiased
