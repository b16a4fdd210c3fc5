import math

import pytest

from training.schedule import cosine


def test_full_rate_after_the_warm_up_and_zero_at_the_end():
    rates = [cosine(step, 100, 10, 0.1) for step in range(101)]
    assert rates[10] == 0.1
    assert rates[100] == 0
    assert rates[0] == pytest.approx(0.1 / 11)
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(0.05)


def test_without_warm_up_it_is_the_closed_form():
    assert cosine(0, 10, 0, 0.1) == 0.1
    for step in range(11):
        expected = 0.1 * (1 + math.cos(math.pi * step / 10)) / 2
        assert cosine(step, 10, 0, 0.1) == pytest.approx(expected, abs=1e-17)
