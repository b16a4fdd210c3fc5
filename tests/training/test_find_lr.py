"""The range test's mathematics; tests/training/test_run.py runs it."""

from types import SimpleNamespace

import numpy as np
import pytest

from training import find_lr
from utils import UserError


def test_the_steepest_fall_is_found_and_divergence_ends_it():
    tried = find_lr.rates(100)
    assert tried[0] == pytest.approx(1e-5) and tried[-1] == pytest.approx(10)
    position = np.log10(tried)
    losses = 2.3 - 2 / (1 + np.exp(-4 * (position + 2))) + np.exp(8 * (position - 0.3))
    curve = find_lr.smoothed(losses)
    assert 60 < len(curve) < 100  # from about 2 on it diverges
    assert 0.005 < find_lr.suggestion(tried, curve) < 0.05  # smoothing lags a little behind 0.01


@pytest.mark.parametrize("losses", [np.linspace(1, 2, 50), [3.0, 2.0], [np.nan]])
def test_no_fall_no_suggestion(losses):
    with pytest.raises(UserError, match="the loss fell at no learning rate"):
        find_lr.suggestion(find_lr.rates(50), find_lr.smoothed(losses))


class Trainer:
    """A trainer whose steps, but for every third one, have images that can be read."""

    def __init__(self, readable=lambda step: step % 3):
        self.step, self.readable, self.rates = 0, readable, []
        self.outcomes = SimpleNamespace(score=None)

    def start(self):
        pass

    def batches(self):
        yield from [(None, None)] * 4

    def train_step(self, _images, _labels, rate):
        self.rates.append(rate)
        if self.readable(self.step):
            self.outcomes.score.add(np.eye(2), np.array([0, 1]), 1.0)
        self.step += 1

    def settle(self):
        pass


def test_a_step_without_images_is_repeated():
    trainer = Trainer()
    assert list(find_lr.losses_at(trainer, [1.0, 2.0, 3.0])) == [1.0] * 3
    assert trainer.rates == [1.0, 1.0, 2.0, 3.0, 3.0][: len(trainer.rates)] and trainer.step == 5
    assert list(find_lr.losses_at(Trainer(lambda _step: False), [1.0])) == []
