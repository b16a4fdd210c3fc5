"""Random numbers by key."""

import numpy as np
import pytest

from data.keyed_random import KeyedRandom

KEY = (7, 3, 2**31, 1)


def numbers(generator):
    return [generator.random(), *generator.integers(1000, size=5), *generator.standard_normal(3)]


@pytest.mark.parametrize("before", ["nothing", "random", "integers", "another key"])
def test_a_key_gives_its_numbers_whatever_was_drawn_before(before):
    random = KeyedRandom()
    generator = random.at(0, 0, 0, 0)
    if before == "random":
        generator.random(7)
    elif before == "integers":
        generator.integers(10, dtype=np.uint32)  # half of a number is kept for the next
    elif before == "another key":
        random.at(1, 2, 3, 4).random(3)
    assert numbers(random.at(*KEY)) == numbers(KeyedRandom().at(*KEY))


def test_each_part_of_a_key_counts():
    random = KeyedRandom()
    keys = [KEY, *((*KEY[:i], KEY[i] + 1, *KEY[i + 1 :]) for i in range(4)), KEY[::-1]]
    assert len({random.at(*key).random() for key in keys}) == len(keys)


def test_neighbouring_keys_have_nothing_in_common():
    random = KeyedRandom()
    drawn = np.array([random.at(0, 0, image, 0).random(4) for image in range(4000)])  # [image, 4]
    assert abs(drawn.mean(axis=0) - 0.5).max() < 0.03
    columns = np.hstack([drawn[:-1], drawn[1:]])  # an image's and the next one's
    assert abs(np.corrcoef(columns.T) - np.eye(8)).max() < 0.08
