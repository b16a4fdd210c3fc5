"""Text on pictures."""

import numpy as np
import pytest

from data.caption import labelled

LINES = ["97.3 % American Staffordshire terrier", "0.1 % Käfer"]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((375, 500), (375, 500)),
        ((8, 8), (320, 320)),
        ((30, 8000), (15, 4096)),
        ((8000, 30), (4096, 15)),
        ((1, 1), (320, 320)),
    ],
)
def test_the_text_is_in_the_upper_left_of_a_copy(shape, expected):
    picture = np.full((*shape, 3), 180, np.uint8)
    found = labelled(picture, LINES)
    assert found.shape == (*expected, 3) and (picture == 180).all()
    if min(shape) >= 8 and max(shape) < 8000:
        assert found.min() == 60 and found.max() > 220  # the ground, and the text on it
        assert (found[-1] == 180).all() and (found[:, -1] == 180).all()
        assert (labelled(picture, ["?", "?"]) != found).any()
