import math

import pytest

from training.schedule import learning_rate


def test_full_rate_after_the_warm_up_and_zero_at_the_end():
    rates = [learning_rate(step, 100, 0.1, warmup=10) for step in range(101)]
    assert rates[10] == 0.1
    assert rates[100] == 0
    assert rates[0] == pytest.approx(0.1 / 11)
    assert all(a < b for a, b in zip(rates[:10], rates[1:11], strict=True))
    assert all(a > b for a, b in zip(rates[10:], rates[11:], strict=False))
    assert rates[55] == pytest.approx(0.05)


def test_without_warm_up_it_is_the_closed_form():
    assert learning_rate(0, 10, 0.1) == 0.1
    for step in range(11):
        expected = 0.1 * (1 + math.cos(math.pi * step / 10)) / 2
        assert learning_rate(step, 10, 0.1) == pytest.approx(expected, abs=1e-17)


def test_the_warm_up_starts_and_the_cosine_ends_where_it_is_told():
    rates = [learning_rate(s, 50, 0.6, warmup=5, warmup_lr=1e-4, min_lr=1e-5) for s in range(51)]
    assert rates[0] == 1e-4 and rates[5] == 0.6 and rates[50] == pytest.approx(1e-5, rel=1e-12)
    rises = [b - a for a, b in zip(rates[:5], rates[1:6], strict=True)]
    assert rises == pytest.approx([(0.6 - 1e-4) / 5] * 5)
    assert min(rates[5:]) == rates[50]


def test_steps_fall_at_their_milestones_and_constant_never():
    common = {"warmup": 2, "warmup_lr": 0.0}
    falling = [
        learning_rate(s, 12, 1.0, "step", milestones=(5, 9), factor=0.5, **common)
        for s in range(12)
    ]
    assert falling == [0, 0.5, 1, 1, 1, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25]
    level = [learning_rate(s, 12, 1.0, "constant", **common) for s in range(12)]
    assert level == [0, 0.5] + [1.0] * 10
