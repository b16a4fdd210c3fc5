"""Two steps of every recipe on tiny data, by the command itself."""

import re
from dataclasses import replace
from pathlib import Path

import models
from models import registry

import numpy as np
import pytest

from data.transforms import TORCHVISION
from tests.support import change_architecture
from training import loop, recipe, run_folder
from training.schedule import SCHEDULES
from weights import checkpoint

# arguments that make a family's network small, and as it is otherwise; of a network of each recipe
SMALL = {
    "RepVGG": {"depths": (1, 1, 1, 1), "width": (0.125, 0.125, 0.125, 0.125)},
    "RepVGGPlus": {"depths": (1, 1, 2, 1), "width": (0.125, 0.125, 0.125, 0.125)},
    "MobileOne": {"depths": (1, 1, 1, 1), "width": (0.25, 0.25, 0.25, 0.125)},
    "RepLKNet": {"channels": (4, 4, 8, 8), "depths": (1, 1, 1, 1), "kernel_sizes": (7, 7, 7, 7)},
    "RepViT": {"channels": (8, 8, 16, 16), "rows": (1, 1, 1, 1)},
    "RepGhost": {"width": 0.25},
    "FastViT": {"channels": (8, 8, 16, 16), "depths": (1, 1, 1, 1)},
}
CLASSES = ("apple", "pear", "plum")
PREPROCESSING = replace(TORCHVISION, size=32)


@pytest.fixture
def small(monkeypatch):
    """Makes an architecture small, where its family takes such arguments."""

    def make(arch):
        network, config = registry._REGISTRY[arch]
        smaller = {**config, **SMALL.get(network.__name__, {})}
        change_architecture(monkeypatch, arch, network, smaller)

    return make


def tiny_sizes(text):
    """A plan of sizes in the same epochs, for a tiny run."""
    sizes = iter((32, 40, 48))
    return ",".join(f"{next(sizes)}@{part.partition('@')[2]}" for part in text.split(","))


def saved_weights(arch, folder):
    """A checkpoint with random weights."""
    path = folder / "weights.pkl"
    model = models.create(arch, len(CLASSES))
    checkpoint.save(checkpoint.of_model(model, PREPROCESSING, sorted(CLASSES)), path)
    return path


SLOW = {"repghost": [pytest.mark.slow]}  # many blocks, whatever its width


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOW.get(n, [])) for n in recipe.names()])
def test_two_steps(command, small, image_folder, tmp_path, monkeypatch, name):
    text = (recipe.FOLDER / f"{name}.conf").read_text()
    given = dict(re.findall(r"^([\w-]+) = (.*?)(?: +#.*)?$", text, re.MULTILINE))
    arch = given.get("arch", "RepVGGA0")
    small(arch)
    monkeypatch.setattr(run_folder, "_curves", lambda _: b"")  # drawing takes longest
    taken, step = [], loop.Trainer.train_step

    def train_step(self, images, labels, rate):
        """Two steps, with a learning rate as in the middle of the run, then the end of it all."""
        step(self, images, labels, 0.01)
        taken.append((self.settings, self.data.train.dataset.augment, images.shape))
        self.total_steps = 2

    monkeypatch.setattr(loop.Trainer, "train_step", train_step)
    data = image_folder(tmp_path / "data", train=4, val=1)
    size = tiny_sizes(given["size"]) if "@" in given.get("size", "") else "32"
    flags = ["--data", data, "--save", tmp_path, "--tag", "run", "--batch-size", 6, "--workers", 0]
    flags += ["--size", size, "--ngpus", 1, "--print-freq", 1, "--lr", 1]
    if "precise-bn" in given:
        flags += ["--precise-bn", 6]
    if "distillation" in given:
        small("RepVGGA0")
        flags += ["--teacher", f"RepVGGA0:{saved_weights('RepVGGA0', tmp_path)}"]
    if "qat" in given:
        flags += ["--pretrained", saved_weights(arch, tmp_path)]
    status, out, err = command("train", "--recipe", name, *flags)
    assert (status, err) == (0, ""), out
    assert len(taken) == 2 and taken[0][2][2:] == (32, 32)
    settings, augment, _ = taken[0]
    for key, value in given.items():  # what the recipe says is what the training was given
        for owner in (settings, augment):
            field = {"repeated-augmentation": "repeats"}.get(key, key.replace("-", "_"))
            if hasattr(owner, field) and field not in ("lr", "batch_size", "precise_bn", "size"):
                assert str(getattr(owner, field)).lower() in (
                    value, str(_number(value)).lower()), key  # fmt: skip
    assert settings.schedule in SCHEDULES and "nan" not in out
    run = Path(next(tmp_path.glob("*/run")))
    latest = checkpoint.read(run / "latest.pkl")
    assert latest.training["step"] == 2
    assert all(np.isfinite(value).all() for value in latest.state_dict.values())
    assert (run / "best.pkl").exists()


def _number(text):
    """The value of a flag, as Settings and Augmentation have it."""
    values = []
    for part in text.split():
        try:
            values.append(float(part))
        except ValueError:
            return text
    return values[0] if len(values) == 1 else tuple(values)
