"""Fixtures of the tests of exported files."""

import models
from models import equivalence

import numpy as np
import pytest

from data.transforms import Preprocessing
from tests.deployment.networks import SMALL


@pytest.fixture
def network():
    """A function that makes one of them, with random weights, in train or deploy form."""

    def make(kind, deploy=True):
        model = SMALL[kind]()
        images = np.random.default_rng(0).standard_normal((8, 3, 64, 64), np.float32)
        equivalence.randomize(model, images)
        return models.to_deploy(model) if deploy else model

    return make


@pytest.fixture
def preprocessing():
    return Preprocessing(size=48)
