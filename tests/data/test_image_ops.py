"""Operations on images, against Pillow's."""

import cv2
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from data import image_ops

FILL = (10, 100, 200)  # BGR


def pictures():
    rng = np.random.default_rng(3)
    noise = rng.integers(0, 256, (40, 56, 3), np.uint8)
    smooth = cv2.resize(noise[:6, :8], (56, 40), interpolation=cv2.INTER_CUBIC)
    return {
        "noise": noise,
        "smooth": smooth,
        "dull": (smooth // 3 + 60).astype(np.uint8),
        "flat": np.full((40, 56, 3), (7, 120, 250), np.uint8),
        "half flat": np.dstack([smooth[..., 0], noise[..., 1] * 0 + 9, noise[..., 2] // 250]),
    }


def by_pillow(function, image):
    found = function(Image.fromarray(image[..., ::-1]))
    return np.asarray(found)[..., ::-1]


FACTORS = (0.0, 0.1, 0.55, 1.0, 1.23, 1.9)
CASES = {
    "invert": (image_ops.invert, ImageOps.invert),
    "auto_contrast": (image_ops.auto_contrast, ImageOps.autocontrast),
    "equalize": (image_ops.equalize, ImageOps.equalize),
}
for value in (0, 1, 100, 255, 256):
    CASES[f"solarize {value}"] = (
        lambda image, value=value: image_ops.solarize(image, value),
        lambda image, value=value: ImageOps.solarize(image, value),
    )
for value in (1, 4, 8):
    CASES[f"posterize {value}"] = (
        lambda image, value=value: image_ops.posterize(image, value),
        lambda image, value=value: ImageOps.posterize(image, value),
    )
for value in FACTORS:
    for ours, theirs in (
        (image_ops.brightness, ImageEnhance.Brightness),
        (image_ops.contrast, ImageEnhance.Contrast),
        (image_ops.saturation, ImageEnhance.Color),
        (image_ops.sharpness, ImageEnhance.Sharpness),
    ):
        CASES[f"{ours.__name__} {value}"] = (
            lambda image, f=ours, value=value: f(image, value),
            lambda image, f=theirs, value=value: f(image).enhance(value),
        )


@pytest.mark.parametrize("picture", pictures())
@pytest.mark.parametrize("case", CASES)
def test_it_is_pillows(case, picture):
    ours, theirs = CASES[case]
    image = pictures()[picture]
    found = ours(image)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, by_pillow(theirs, image))
    np.testing.assert_array_equal(image, pictures()[picture])  # as it was


def test_solarize_add_and_the_last_bit():
    image = np.array([[[0, 127, 128]], [[100, 200, 255]]], np.uint8)
    assert image_ops.solarize_add(image, 110).ravel().tolist() == [110, 237, 128, 210, 200, 255]
    assert not image_ops.posterize(image, 0).any()


W, H = 56, 40
GEOMETRY = {
    "shear_x": (0.2, (1, 0.2, 0, 0, 1, 0)),
    "shear_y": (-0.3, (1, 0, 0, -0.3, 1, 0)),
    "translate_x": (0.25, (1, 0, 0.25 * W, 0, 1, 0)),
    "translate_y": (-0.4, (1, 0, 0, 0, 1, -0.4 * H)),
    "rotate": (25, None),
}


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("name", GEOMETRY)
def test_geometry_is_pillows_within_the_edge(name, interpolation):
    value, matrix = GEOMETRY[name]
    image = pictures()["smooth"]
    method = Image.Resampling[interpolation.upper()]
    fill = FILL[::-1]

    def pillow(picture):
        if matrix is None:
            return picture.rotate(value, method, fillcolor=fill)
        return picture.transform(
            picture.size, Image.Transform.AFFINE, matrix, method, fillcolor=fill
        )

    found = getattr(image_ops, name)(image, value, FILL, interpolation)
    expected = by_pillow(pillow, image)
    outside = (expected == FILL).all(axis=-1).astype(np.uint8)
    assert 0.02 < outside.mean() < 0.6
    # a band along the picture's edge is blended there with the fill
    edge = cv2.dilate(outside, np.ones((5, 5))) - cv2.erode(outside, np.ones((5, 5)))
    difference = abs(found.astype(int) - expected)[edge == 0]
    largest, mean = {"bilinear": (4, 0.6), "bicubic": (16, 1)}[interpolation]
    assert difference.max() <= largest and difference.mean() < mean
