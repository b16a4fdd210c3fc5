"""Augmentation."""

import numpy as np
import pytest

from data.augment import Augmentation, augment, crop_box
from data.datasets import DIGITS
from data.transforms import Preprocessing


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
    for settings in ({}, vars(DIGITS)):
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


@pytest.mark.parametrize("probability", [0, 1])
def test_flip_has_its_probability(rng, coordinates, probability):
    for _ in range(20):
        red = augmented(coordinates, rng, flip=probability)[8, :, 2]
        assert (red[0] > red[-1]) == probability
