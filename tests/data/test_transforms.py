"""Pixels: colour order, normalization, crops."""

import math

import cv2
import numpy as np
import pytest
from PIL import Image

from data.transforms import BASECLS, TORCHVISION, Preprocessing


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


PHOTOGRAPH = (375, 500)  # as ImageNet's


@pytest.mark.parametrize("shape", [PHOTOGRAPH, (500, 333), (256, 300), (100, 90), (257, 256)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("ratio, size", [(0.875, 224), (0.9, 224), (0.95, 97), (1.0, 64)])
def test_pillows_evaluation_is_torchvisions_to_the_bit(rng, shape, interpolation, ratio, size):
    """Resize(floor(size / ratio)) and CenterCrop(size) on a PIL image, as torchvision has them."""
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    picture = Image.fromarray(image[..., ::-1])
    short, (width, height) = math.floor(size / ratio), picture.size
    if min(width, height) != short:
        if width < height:
            new = (short, int(short * height / width))
        else:
            new = (int(short * width / height), short)
        picture = picture.resize(new, Image.Resampling[interpolation.upper()])
    left, top = (round((side - size) / 2.0) for side in picture.size)
    expected = np.asarray(picture.crop((left, top, left + size, top + size)))[..., ::-1]
    preprocessing = Preprocessing(
        size=size, interpolation=interpolation, crop_ratio=ratio, resize_backend="pillow"
    )
    np.testing.assert_array_equal(preprocessing.evaluation_crop(image), expected)


def test_shrinking_by_opencv_is_not_antialiased():
    """Columns that alternate between black and white: grey for Pillow, stripes for OpenCV."""
    stripes = np.zeros((375, 500, 3), np.uint8)
    stripes[:, ::2] = 255
    spread = {
        backend: Preprocessing(size=170, crop_ratio=1.0, resize_backend=backend)
        .evaluation_crop(stripes)
        .astype(float)
        .std()
        for backend in ("pillow", "opencv")
    }
    assert spread["pillow"] < 3 and spread["opencv"] > 70


def test_checkpoints_that_do_not_say_it_keep_opencvs_pixels():
    assert Preprocessing().resize_backend == BASECLS.resize_backend == "opencv"
    assert TORCHVISION.resize_backend == "pillow"


@pytest.mark.parametrize("wrong", [{"resize_backend": "torch"}, {"mean": (0, 0, float("inf"))}])
def test_a_preprocessing_that_is_not_possible_is_refused(wrong):
    with pytest.raises(ValueError, match="makes no sense"):
        Preprocessing(**wrong)
