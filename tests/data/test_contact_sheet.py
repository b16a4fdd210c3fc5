"""The contact sheet."""

import cv2
import numpy as np

from data.contact_sheet import contact_sheet
from data.transforms import BASECLS, Preprocessing


def test_it_shows_what_the_network_sees(rng):
    pixels = np.full((10, 32, 32, 3), 255, np.uint8)
    pixels[:] = rng.integers(0, 256, (10, 1, 1, 3))
    names = ["cat", "dog", "a name that is much too long for its place", "Küche"]
    for preprocessing in (Preprocessing(), BASECLS):
        images = np.stack([preprocessing.normalize(image) for image in pixels])
        png = contact_sheet(images, np.arange(10) % 4, names, preprocessing)
        sheet = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR)
        assert sheet.shape == (2 * 202 + 8, 8 * 168 + 8, 3)
        assert (sheet[8 + 80, 8 + 80] == pixels[0, 0, 0]).all()
        assert (sheet[8 + 202 + 80, 8 + 168 + 80] == pixels[9, 0, 0]).all()
        caption = sheet[8 + 160 : 202, 8 : 8 + 160]
        assert caption.min() < 50  # a name is written
        assert sheet[8 + 202 + 80, 8 + 2 * 168 + 80].tolist() == [255] * 3  # no eleventh image


def test_mixed_labels_take_two_lines(rng):
    images = np.zeros((1, 3, 200, 200), np.float32)

    def lines(label):
        png = contact_sheet(images, np.array([label], np.float32), ["cat", "dog"], Preprocessing())
        sheet = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
        return [sheet[168 + 15 * line : 183 + 15 * line, 8:168].min() < 100 for line in range(2)]

    assert lines([1, 0]) == [True, False]
    assert lines([0.3, 0.7]) == [True, True]


def test_pixels_is_the_inverse_of_normalize(rng):
    image = rng.integers(0, 256, (9, 7, 3), np.uint8)
    for preprocessing in (Preprocessing(), BASECLS):
        found = preprocessing.pixels(preprocessing.normalize(image))
        np.testing.assert_array_equal(found, image)
