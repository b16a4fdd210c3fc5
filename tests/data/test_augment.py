"""Augmentation."""

import numpy as np
import pytest

from data.augment import Augmentation, augment, color_jitter, crop_box, erase
from data.datasets import DIGITS
from data.transforms import Preprocessing
from utils import UserError


def augmented(image, rng, size=64, **settings):
    out = np.empty((size, size, 3), np.uint8)
    augment(image, rng, Augmentation(**settings), Preprocessing(size=size), out)
    return out


@pytest.fixture
def coordinates():
    """A picture whose red is the column and whose green is the row."""
    image = np.zeros((200, 200, 3), np.uint8)
    image[..., 2], image[..., 1] = np.arange(200), np.arange(200)[:, None]
    return image


@pytest.mark.parametrize("shape", [(500, 30), (30, 500), (1, 1), (7, 300), (224, 224)])
def test_any_shape_gives_the_size(rng, shape):
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    digits = {name: value for name, value in vars(DIGITS).items() if name != "size"}
    for settings in ({}, digits):
        assert augmented(image, rng, **settings).any()


def test_random_resized_crop_covers_what_it_should(rng, coordinates):
    """Area and mirroring of many crops."""
    widths, mirrored = [], 0
    for _ in range(400):
        red = augmented(coordinates, rng, 16)[8, :, 2].astype(int)
        widths.append(abs(red[-1] - red[0]) / 200)
        mirrored += red[0] > red[-1]
    assert min(widths) > 0.15 and max(widths) > 0.9
    assert 0.4 < mirrored / 400 < 0.6


def test_the_scale_of_the_crop_is_obeyed(rng):
    areas = []
    for _ in range(300):
        box = crop_box(300, 400, (0.3, 0.5), rng)
        assert box.top + box.height <= 300 and box.left + box.width <= 400
        assert 0.74 < box.width / box.height < 1.35
        areas.append(box.height * box.width / (300 * 400))
    assert 0.29 < min(areas) < 0.32 and 0.48 < max(areas) < 0.51


def test_the_crop_of_a_very_long_image_is_its_centre(rng):
    """No box of 8 % of the area has a possible shape there."""
    assert {crop_box(2000, 60, (0.08, 1.0), rng) for _ in range(9)} == {(960, 0, 80, 60)}


@pytest.mark.parametrize("probability", [0, 1])
def test_flip_has_its_probability(rng, coordinates, probability):
    for _ in range(20):
        red = augmented(coordinates, rng, flip=probability)[8, :, 2]
        assert (red[0] > red[-1]) == probability


def test_padding_crop_moves_by_up_to_the_padding(rng, coordinates):
    image, seen = coordinates[:64, 100:164], set()
    for _ in range(400):
        out = augmented(image, rng, padding_crop=3, flip=0)
        valid = out[32, 32]
        top, left = int(valid[1]) - 32, int(valid[2]) - 132
        seen.add((top, left))
        assert (out[0] == 0).all() == (top < 0) and (out[:, -1] == 0).all() == (left > 0)
    assert seen == {(top, left) for top in range(-3, 4) for left in range(-3, 4)}


def test_color_jitter_has_its_range(rng):
    grey = np.full((8, 8, 3), 100, np.uint8)  # contrast and saturation change nothing of it
    values = [color_jitter(grey, 0.4, rng)[0, 0, 0] for _ in range(300)]
    assert 60 <= min(values) < 64 and 136 < max(values) <= 140
    image = rng.integers(0, 256, (8, 8, 3), np.uint8)
    np.testing.assert_array_equal(color_jitter(image, 0, rng), image)


@pytest.mark.parametrize("mode", ["const", "rand", "pixel"])
def test_random_erasing(rng, mode):
    preprocessing = Preprocessing(size=64)
    areas = []
    for _ in range(200):
        image = np.full((64, 64, 3), 255, np.uint8)
        image[..., 0] = 0  # no colour that erasing is likely to give
        erase(image, mode, 1, rng, preprocessing)
        changed = (image != (0, 255, 255)).any(axis=-1)
        rows, columns = changed.any(axis=1).nonzero()[0], changed.any(axis=0).nonzero()[0]
        inside = image[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        areas.append(inside[..., 0].size / 64**2)
        colours = np.unique(inside.reshape(-1, 3), axis=0)
        assert (len(colours) == 1) == (mode != "pixel")
        if mode == "const":
            assert colours[0].tolist() == [104, 116, 124]  # the mean, in BGR
    assert min(areas) < 0.04 and 0.28 < max(areas) < 0.36 and 0.1 < np.mean(areas) < 0.2


def test_erased_pixels_have_the_statistics_of_the_data(rng):
    image = np.zeros((400, 400, 3), np.uint8)
    for _ in range(100):
        erase(image, "pixel", 4, rng, Preprocessing(mean=(90, 120, 150), std=(10, 20, 30)))
    erased = image[image.any(axis=-1)]  # [pixels, 3]
    assert len(erased) > 100_000
    assert abs(erased.mean(axis=0) - (150, 120, 90)).max() < 1
    assert abs(erased.std(axis=0) - (30, 20, 10)).max() < 1


FULL = {
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "random_erasing": 0.5,
    "random_interpolation": True,
}


@pytest.mark.parametrize("settings", [{}, FULL, {"color_jitter": 0.4}, {"padding_crop": 4}])
def test_the_same_key_gives_the_same_pixels(rng, settings):
    image = rng.integers(0, 256, (90, 80, 3), np.uint8)
    for key in range(20):
        one, two = (augmented(image, np.random.default_rng(key), **settings) for _ in range(2))
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, augmented(image, np.random.default_rng(21), **settings))


def test_wrong_settings_are_refused_at_once():
    with pytest.raises(UserError, match="no erasing mode 'noise'; use const, rand, pixel"):
        Augmentation(erasing_mode="noise")
    with pytest.raises(UserError, match="no augmentation policy 'v7'"):
        Augmentation(auto_augment="v7")
