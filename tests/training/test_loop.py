"""What the settings do to a training in this process, on a tiny network and random images."""

import os
import signal
from dataclasses import replace

import models

import megengine as mge
import numpy as np
import pytest

from data.augment import Augmentation
from data.datasets import Dataset
from data.loader import Loader
from data.transforms import Preprocessing
from training.loop import Trainer
from training.run_folder import RunFolder
from training.settings import Settings
from training.signals import Interrupted
from training.teacher import Teacher
from training.trainer_inputs import Data, Network, Run
from utils import UserError
from weights import checkpoint

AFFINE = Augmentation(affine=True)
PREPROCESSING = Preprocessing(size=32, crop_ratio=1.0)


@pytest.fixture
def train(tiny, tmp_path):
    """A function that trains a tiny network as told: (weights before, weights after, trainer)."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 24).astype(np.int32)
    data = Dataset("noise", images, labels, list("0123456789"), AFFINE)

    def run(teacher=None, kind="dense", augment=AFFINE, **settings):
        model = tiny(kind)
        before = {name: value.copy() for name, value in model.state_dict().items()}
        datasets = (replace(data, augment=augment), data)
        loaders = [Loader(dataset, PREPROCESSING, 12, workers=1) for dataset in datasets]
        wanted = {"epochs": 1, "batch_size": 12, "lr": 0.1, "momentum": 0.0} | settings
        network, run = Network(model, teacher=teacher), Run(RunFolder(tmp_path))
        trainer = Trainer(network, Data(*loaders), Settings(**wanted), run)
        trainer.fit()
        return before, model.state_dict(), trainer

    return run


def assert_equal(a, b):
    assert a.keys() == b.keys()
    assert all(np.array_equal(a[name], b[name]) for name in a)


def step_norm(before, after):
    names = [name for name in before if "running" not in name]
    return np.sqrt(sum(((after[n] - before[n]).astype(np.float64) ** 2).sum() for n in names))


@pytest.mark.parametrize("parts", [2, 5])
def test_parts_make_the_step_of_the_whole_batch(train, parts):
    """Frozen, for the batch norms would see the parts."""
    _, whole, _ = train(freeze=True)
    before, accumulated, _ = train(freeze=True, accumulate=parts)
    moved = np.abs(whole["linear.weight"] - before["linear.weight"]).max()
    difference = np.abs(whole["linear.weight"] - accumulated["linear.weight"]).max()
    assert moved > 0 and difference < 1e-4 * moved


def test_mixed_batches_teach_mixed_labels(train):
    mixing = Augmentation(affine=True, mixup=0.8, cutmix=1.0)
    _, plain, _ = train()
    _, mixed, _ = train(augment=mixing)
    assert not np.array_equal(plain["linear.weight"], mixed["linear.weight"])
    assert_equal(mixed, train(augment=mixing)[1])


def test_watching_does_not_disturb(train):
    """The average and precise statistics change what is evaluated, and not the training."""
    _, plain, trainer = train()
    _, watched, watching = train(ema=0.9, precise_bn=12)
    assert_equal(plain, watched)
    a, b = trainer.history[0], watching.history[0]
    assert a["train_loss"] == b["train_loss"] and a["val_loss"] != b["val_loss"]
    assert b["ema_loss"] not in (a["val_loss"], b["val_loss"])


@pytest.mark.parametrize("evaluation", [1, 2])
def test_a_signal_while_weights_are_lent_saves_the_networks_own(
    train, tmp_path, monkeypatch, evaluation
):
    """The first evaluation is of precise statistics, the second of the average too."""
    _, plain, _ = train()
    started = []

    def signalled(self):
        started.append(self)
        if len(started) == evaluation:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self)

    evaluate = Loader.evaluation
    monkeypatch.setattr(Loader, "evaluation", signalled)
    with pytest.raises(Interrupted):
        train(ema=0.9, precise_bn=12)
    saved = checkpoint.read(tmp_path / "latest.pkl")
    assert saved.training["step"] == 2 and saved.training["history"] == []
    assert_equal(plain, saved.state_dict)


def test_a_clipped_step_is_as_long_as_the_limit(train):
    before, after, _ = train(schedule="constant", lr=1.0, weight_decay=0.0, clip_norm=0.01)
    length = step_norm(before, after)  # of two steps
    assert 0.01 < length <= 0.02 * 1.001


def test_adaptive_clipping_leaves_the_classifier_out(train):
    before, free, _ = train(weight_decay=0.0)
    _, clipped, _ = train(weight_decay=0.0, agc=1e-4)

    def moved(weights, name):
        return np.abs(weights[name] - before[name]).max()

    name = "stage1.0.dense.conv.weight"
    assert moved(clipped, name) < 0.1 * moved(free, name)
    assert moved(clipped, "linear.weight") > 0.1 * moved(free, "linear.weight")


def test_the_teacher_counts_by_alpha(train, tiny):
    guide = tiny(seed=1)
    same = Teacher(guide, PREPROCESSING, PREPROCESSING)
    inverted = Teacher(guide, PREPROCESSING, PREPROCESSING)
    inverted.scale = -inverted.scale
    common = {"distillation": "soft"}
    _, plain, _ = train()
    _, unheard, _ = train(same, distillation_alpha=0.0, **common)
    assert all(np.allclose(plain[name], unheard[name], rtol=1e-5, atol=1e-6) for name in plain)
    _, one, _ = train(same, distillation_alpha=1.0, **common)
    _, other, _ = train(inverted, distillation_alpha=1.0, **common)
    assert not np.allclose(one["linear.weight"], other["linear.weight"], rtol=1e-3)
    assert not guide.training and guide.linear.weight.grad is None


def test_adamw_trains_what_is_learnt_alone(train):
    before, after, _ = train(optimizer="adamw", lr=0.01, freeze=True)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    assert changed == {"linear.weight", "linear.bias"}
    # the first steps of Adam are as long as the learning rate
    assert np.abs(after["linear.bias"] - before["linear.bias"]).max() < 0.021


def test_every_schedule_reaches_the_optimizer(train):
    *_, trainer = train(epochs=2, schedule="step", milestones=(0.5, 1.5), step_factor=0.5)
    assert [trainer.learning_rate(step) for step in range(4)] == [0.1, 0.05, 0.05, 0.025]
    assert trainer.update.optimizer.param_groups[0]["lr"] == 0.025
    *_, trainer = train(warmup_epochs=0.5, warmup_lr=0.01, min_lr=0.02)
    assert trainer.learning_rate(0) == 0.01 and trainer.learning_rate(2) == pytest.approx(0.02)


def test_a_two_headed_network_learns_from_both(tmp_path, rng):
    """RepViT's second head has the teacher's signal alone: with alpha 0 it gets no gradient."""
    mge.random.seed(0)
    model = models.create("RepViTM0_6", 10)
    guide = models.create("RepGhost050", 10, deploy=True)
    images = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
    data = Dataset("noise", images, np.arange(4, dtype=np.int32), list("0123456789"), AFFINE)
    for alpha, moves in (0.0, {"head"}), (1.0, {"head_dist"}):
        before = {name: value.copy() for name, value in model.state_dict().items()}
        trainer = Trainer(
            Network(model, teacher=Teacher(guide, PREPROCESSING, PREPROCESSING)),
            Data(*(Loader(data, PREPROCESSING, 4, workers=1) for _ in range(2))),
            Settings(1, 4, 0.1, weight_decay=0.0, distillation_alpha=alpha),
            Run(RunFolder(tmp_path)),
        )
        trainer.fit()
        after = model.state_dict()
        heads = {
            head
            for head in ("head", "head_dist")
            if not np.array_equal(before[f"{head}.linear.weight"], after[f"{head}.linear.weight"])
        }
        assert heads == moves


def test_a_network_that_overflows_in_validation_is_never_the_best(tiny, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 32, 32, 3), np.uint8)
    data = Dataset("noise", images, np.arange(24) % 10, list("0123456789"), AFFINE)
    loaders = [Loader(data, PREPROCESSING, 12, workers=1) for _ in range(2)]
    model, folder = tiny(), RunFolder(tmp_path)
    settings = Settings(epochs=1, batch_size=12, lr=0.1)
    trainer = Trainer(Network(model), Data(*loaders), settings, Run(folder))
    train_step = trainer.train_step

    def overflow(*arguments):
        train_step(*arguments)
        if trainer.step == 2:  # the last one
            model.linear.weight[3] = np.float32(3e38)

    monkeypatch.setattr(trainer, "train_step", overflow)
    with pytest.raises(UserError, match="logits of 24 validation images .* after step 2 .epoch 1"):
        trainer.fit()
    assert not folder.best.exists() and folder.latest.exists()


def test_running_statistics_that_overflow_are_not_saved(train, monkeypatch):
    save = Trainer.save

    def overflow(trainer):
        trainer.model.stage0.dense.bn.running_var[:, 3] = np.float32("inf")
        save(trainer)

    monkeypatch.setattr(Trainer, "save", overflow)
    with pytest.raises(UserError, match="state of the network became infinite"):
        train()
