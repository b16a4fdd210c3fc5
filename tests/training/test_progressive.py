"""Training with settings that change by epoch: what is trained, recorded, resumed and refused."""

import csv
import os
import signal

import numpy as np
import pytest

from training import loop, run_folder
from weights import checkpoint

FLAGS = ["--arch", "RepVGGA0", "--batch-size", "4", "--workers", "0", "--epochs", "3",
         "--warmup-epochs", "0", "--print-freq", "1"]  # fmt: skip
PLAN = ["--size", "32@0,48@1", "--weight-decay", "1e-2..0", "--flip", "0@0,1@2",
        "--auto-augment", "none@0,v0@2", "--mixup", "0@0,0.4@1"]  # fmt: skip


@pytest.fixture
def train(command, small_repvgg_a0, image_folder, tmp_path, monkeypatch):
    """A function that runs train.py on few images: (exit status, output, errors)."""
    monkeypatch.setattr(run_folder, "_curves", lambda _: b"")  # drawing takes longest
    data = image_folder(tmp_path / "data", train=4, val=2, side=50)

    def run(*flags):
        return command("train", "--data", data, "--save", tmp_path, *FLAGS, *flags)

    run.data, run.home = data, tmp_path / "RepVGGA0"
    return run


@pytest.fixture
def steps(monkeypatch):
    """What each step was given: size of the images, weight decays of the two groups."""
    seen = []

    def train_step(self, images, labels, rate):
        step(self, images, labels, rate)
        groups = self.update.optimizer.param_groups
        seen.append((images.shape[-1], *(group["weight_decay"] for group in groups)))

    step = loop.Trainer.train_step
    monkeypatch.setattr(loop.Trainer, "train_step", train_step)
    return seen


def test_settings_change_by_epoch_and_are_recorded(train, steps):
    status, out, err = train("--tag", "a", *PLAN)
    assert (status, err) == (0, "")
    sizes, decayed, spared = zip(*steps, strict=True)
    assert sizes == (32,) * 3 + (48,) * 6 and set(spared) == {0}
    expected = [0.01, 0.0075, 0.0025]
    assert decayed == pytest.approx(np.repeat(expected, 3))
    with open(train.home / "a" / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["weight_decay"]) for row in rows] == pytest.approx(expected)
    assert [(row["size"], row["flip"], row["mixup"]) for row in rows] == [
        ("32", "0", "0"), ("48", "0", "0.4"), ("48", "1", "0.4")]  # fmt: skip
    lines = [line for line in out.splitlines() if line.startswith("from epoch")]
    assert lines[0].startswith("from epoch 2 on: ") and "size 48" in lines[0]
    assert lines[1] == "from epoch 3 on: flip 1, auto-augment v0"
    best = checkpoint.read(train.home / "a" / "best.pkl")
    assert best.preprocessing.size == 48  # validated, tested and deployed at the last one


def test_an_interrupted_run_goes_on_to_the_same_bits(train, monkeypatch):
    assert train("--tag", "whole", *PLAN)[0] == 0
    step = loop.Trainer.train_step

    def interrupted(self, images, labels, rate):
        step(self, images, labels, rate)
        if self.step == 5:  # within the second epoch
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loop.Trainer, "train_step", interrupted)
    assert train("--tag", "parts", *PLAN)[0] == 128 + signal.SIGTERM
    monkeypatch.setattr(loop.Trainer, "train_step", step)
    status, _, err = train("--tag", "parts", *PLAN, "--resume", "auto", "--size", "32@0,40@1")
    assert status == 2 and "had size 32@0,48@1, and now it is 32@0,40@1" in err
    status, _, err = train("--tag", "parts", *PLAN, "--resume", "auto", "--weight-decay", "0.01..1")
    assert status == 2 and "had weight-decay 1e-2..0, and now it is 0.01..1" in err
    again = [*PLAN, "--weight-decay", "0.01..0"]  # the same in other words
    status, _, err = train("--tag", "parts", *again, "--resume", "auto")
    assert (status, err) == (0, "")
    whole, parts = (checkpoint.read(train.home / tag / "latest.pkl") for tag in ("whole", "parts"))
    for name, value in whole.state_dict.items():
        np.testing.assert_array_equal(value, parts.state_dict[name], err_msg=name)
    assert whole.training["history"] == parts.training["history"]


def test_one_number_and_a_plan_of_it_are_the_same_bits(train):
    plain = ["--size", "32", "--weight-decay", "0.01", "--flip", "0.5"]
    plan = ["--size", "32@0,32@1", "--weight-decay", "0.01@0", "--flip", "0.5@0,0.5@2"]
    for tag, flags in (("plain", plain), ("plan", plan)):
        assert train("--tag", tag, *flags)[0] == 0
    one, other = (checkpoint.read(train.home / tag / "latest.pkl") for tag in ("plain", "plan"))
    for name, value in one.state_dict.items():
        np.testing.assert_array_equal(value, other.state_dict[name], err_msg=name)
    assert "weight_decay" not in one.training["history"][0]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--size", "160..224"], "'160..224' is for numbers with fractions; give steps"),
        (["--size", "160@0,0@1"], "'0' is not a whole number of at least 1"),
        (["--size", "160@0,224@3"], "--size 160@0,224@3 changes after epoch 3, but there are 3"),
        (["--flip", "0..2"], "'2' is not a number of at least 0 and at most 1"),
        (["--flip", "1@1"], "the epochs of '1@1' are to begin with 0"),
        (["--auto-augment", "none@0,v7@1"], "there is no augmentation policy 'v7'"),
        (["--auto-augment", "none..v0"], "is for numbers with fractions"),
        (["--crop-scale", "0.1@0,0.9@1", "0.5"], "takes the lower number first"),
        (["--crop-scale", "0.2..0.9", "0.3@0,0.95@2"], "takes the lower number first"),
        (["--lr", "0.1..0.01"], "'0.1..0.01' is not a number above 0"),
    ],
)
def test_what_is_refused(train, flags, sentence):
    status, out, err = train(*flags)
    assert (status, out, len(err.splitlines())) == (2, "", 1)
    assert sentence in err
