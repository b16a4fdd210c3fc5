"""Stochastic depth: what is left out how often, and that it is the same however it is computed."""

import models
from models import equivalence
from models.replknet import RepLKNet

import megengine as mge
import numpy as np
import pytest
from megengine.autodiff import GradManager

from tests.support import change_architecture
from training import drop_path, low_memory, run_folder
from weights import checkpoint

SMALL = {"channels": (4, 4, 8, 8), "depths": (1, 1, 2, 1), "kernel_sizes": (7, 7, 7, 7)}


@pytest.fixture
def small(rng):
    network = RepLKNet(**SMALL, num_classes=3)  # whose blocks are the identity until trained
    equivalence.randomize(network, rng.standard_normal((2, 3, 32, 32)).astype(np.float32))
    return network


def test_rates_rise_from_the_first_block_to_the_last(small):
    branches = drop_path.branches(small)
    assert [share for _, share in branches] == np.repeat([0, 0.25, 0.5, 0.75, 1], 2).tolist()
    blocks = [b for b in small.blocks() if isinstance(b, models.replknet.RepLKNetBlock)]
    assert branches[-1][0] in (blocks[-1].drop_spread, blocks[-1].drop_project)
    fastvit = drop_path.branches(models.create("FastViTT8", 3))
    assert len(fastvit) == 10 and fastvit[0][1] == 0 and fastvit[-1][1] == 1
    assert drop_path.branches(models.create("RepGhost050", 3)) == []


def test_as_many_are_left_out_as_the_rate_says(small):
    factors = drop_path.draw(small, 0.5, np.array([20000]), 0, (0, 7))
    assert factors.shape == (20000, 10) and factors.dtype == np.float32
    rates = np.repeat([0, 0.125, 0.25, 0.375, 0.5], 2)
    assert np.abs((factors == 0).mean(axis=0) - rates).max() < 0.02
    assert np.abs(factors.mean(axis=0) - 1).max() < 0.03  # the mean of a branch stays as it is
    kept = factors[:, -1][factors[:, -1] > 0]
    assert (kept == 2).all() and (factors[:, :2] == 1).all()


def test_factors_follow_the_seed_and_the_step_and_not_the_workers(small):
    whole = drop_path.draw(small, 0.5, np.array([12]), 0, (0, 7))
    counts = np.array([5, 4, 3])
    parts = [drop_path.draw(small, 0.5, counts, rank, (0, 7)) for rank in range(3)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    for other in ((0, 8), (1, 7)):
        assert (drop_path.draw(small, 0.5, np.array([12]), 0, other) != whole).any()
    assert drop_path.draw(small, 0.0, np.array([12]), 0, (0, 7)).shape == (12, 0)


def test_a_branch_that_is_left_out_does_nothing(small, rng):
    """Without all branches but the first block's, the block is the identity, in training alone."""
    block = small.blocks()[0]
    images = mge.Tensor(rng.standard_normal((2, 4, 8, 8)).astype(np.float32))
    both = [block.drop_spread, block.drop_project]
    usual = block(images).numpy()
    for drop in both:
        drop.factors = np.array([0, 1], np.float32)
    dropped = block(images).numpy()
    np.testing.assert_array_equal(dropped[0], images.numpy()[0])
    assert np.abs(dropped[1] - images.numpy()[1]).max() > 0.01
    with drop_path.applied(small, np.ones((2, 10), np.float32)):
        np.testing.assert_array_equal(block(images).numpy(), usual)
    assert all(drop.factors is None for drop in both)


def test_less_memory_is_the_same_step(small, rng):
    images = rng.standard_normal((4, 3, 32, 32)).astype(np.float32)
    factors = drop_path.draw(small, 0.9, np.array([4]), 0, (0, 0))
    grads = []
    for backward in (low_memory.backward_at_once, low_memory.backward):
        manager = GradManager().attach(small.parameters())
        with drop_path.applied(small, factors):
            backward(small, manager, mge.Tensor(images), lambda logits: [(logits**2).sum()])
        grads.append([p.grad.numpy() for p in small.parameters()])
        for parameter in small.parameters():
            parameter.grad = None
    for one, other in zip(*grads, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.fixture
def train(command, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run_folder, "_curves", lambda _: b"")  # drawing takes longest
    change_architecture(monkeypatch, "RepLKNet31B", RepLKNet, SMALL)
    data = image_folder(tmp_path / "data", train=2, val=1)
    flags = ["--data", data, "--save", tmp_path, "--size", 32, "--batch-size", 6, "--workers", 0]
    return lambda *more: command("train", *flags, "--epochs", 2, "--tag", *more)


def test_drop_path_from_the_command_line(train, tmp_path):
    weights = {}
    for tag, flags in (("none", []), ("half", ["0.5"]), ("again", ["0@0,0.5@1"])):
        flags = ["--drop-path", *flags] if flags else []
        status, _, err = train(tag, "--arch", "RepLKNet31B", *flags)
        assert (status, err) == (0, "")
        latest = checkpoint.read(tmp_path / "RepLKNet31B" / tag / "latest.pkl")
        weights[tag] = latest.state_dict["linear.weight"]
    assert (weights["none"] != weights["half"]).any()
    assert (weights["half"] != weights["again"]).any()
    status, _, err = train("b", "--arch", "RepVGGA0", "--drop-path", 0.1)
    assert status == 2 and "RepVGGA0 is trained without; leave it out" in err
