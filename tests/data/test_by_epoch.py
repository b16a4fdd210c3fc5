"""Settings that change by epoch: what a text means in each epoch, and what is no such text."""

from dataclasses import replace

import numpy as np
import pytest

from data import by_epoch
from data.augment import Augmentation
from data.loader import Loader
from data.readers import class_folders
from data.transforms import Preprocessing
from tests.support import write_image_folder
from utils import UserError


@pytest.mark.parametrize(
    "value, in_epochs",
    [
        (224, [224] * 5),
        ("none", ["none"] * 5),
        ("160@0,192@2,224@4", [160, 160, 192, 192, 224]),
        ("0.1@0,1@3", [0.1, 0.1, 0.1, 1, 1]),
        ("none@0,rand-m9-mstd0.5-inc1@1", ["none"] + ["rand-m9-mstd0.5-inc1"] * 4),
        ("1..0", [1, (2 + 2**0.5) / 4, 0.5, (2 - 2**0.5) / 4, 0]),
        (("0.3@0,0.1@2", 1.0), [(0.3, 1.0)] * 2 + [(0.1, 1.0)] * 3),
    ],
)
def test_a_value_in_each_epoch(value, in_epochs):
    for epoch, expected in enumerate(in_epochs):
        assert by_epoch.value_at(value, epoch, 4) == pytest.approx(expected)
    assert by_epoch.changes(value) == (in_epochs[0] != in_epochs[-1])


def test_the_last_value_lasts():
    assert by_epoch.value_at("1e-4..1e-5", 300, 300) == by_epoch.value_at("1e-4..1e-5", 400, 300)
    assert by_epoch.value_at("1@0,2@3", 99, 4) == 2
    assert by_epoch.values("1e-4..1e-5") == [1e-4, 1e-5] and by_epoch.values(7) == [7]


@pytest.mark.parametrize(
    "text, sentence",
    [
        ("160@1,192@3", "begin with 0 and to rise"),
        ("160@0,192@3,224@3", "begin with 0 and to rise"),
        ("160@0,192", "not of the form VALUE@EPOCH"),
        ("160@0,@3", "not of the form VALUE@EPOCH"),
        ("160@0,192@1.5", "not of the form VALUE@EPOCH"),
        ("1..2..3", "not of the form FIRST..LAST"),
        ("..3", "not of the form FIRST..LAST"),
    ],
)
def test_what_is_no_plan(text, sentence):
    with pytest.raises(UserError, match=sentence):
        by_epoch.texts(text)


def test_the_same_plan_in_other_words():
    assert by_epoch.same("1e-4..1e-5", "0.0001..0.00001")
    assert by_epoch.same("160@0,192@3", "160@0,192@03")
    assert not by_epoch.same("1@0,2@3", "1@0,2@4") and not by_epoch.same("1@0,2@3", "1..2")
    assert not by_epoch.same(1, "1..2") and by_epoch.same("none", "none")


def test_an_augmentation_in_an_epoch():
    plan = Augmentation(flip="0@0,1@2", auto_augment="none@0,v0@1", size="32@0,48@1")
    assert by_epoch.at(plan, 0, 3) == Augmentation(flip=0, size=32)
    assert by_epoch.at(plan, 2, 3) == Augmentation(flip=1, auto_augment="v0", size=48)
    assert by_epoch.at(Augmentation(), 2, 3) == Augmentation()
    with pytest.raises(UserError, match="no augmentation policy 'v7'"):
        Augmentation(auto_augment="none@0,v7@1")


def test_the_loader_follows(tmp_path):
    """Each epoch is that of a loader with the epoch's own settings, whoever prepares it."""
    train = class_folders.read(write_image_folder(tmp_path, train=4, side=60), "train")
    plan = replace(train, augment=Augmentation(flip="0@0,1@1", size="32@0,48@2", repeats="1@0,2@2"))
    now = [Augmentation(flip=0), Augmentation(flip=1), Augmentation(flip=1, repeats=2)]
    for workers in (0, 2):
        loader = Loader(plan, Preprocessing(size=48), 6, workers)
        loader.epochs = 3
        for epoch, (augment, size) in enumerate(zip(now, (32, 32, 48), strict=True)):
            alone = Loader(replace(train, augment=augment), Preprocessing(size=size), 6, 0)
            both = zip(loader.training(1, epoch), alone.training(1, epoch), strict=True)
            for (images, labels), (expected, same_labels) in both:
                assert images.shape == (6, 3, size, size)
                np.testing.assert_array_equal(images, expected)
                np.testing.assert_array_equal(labels, same_labels)
        (images, _), *_ = loader.evaluation()
        assert images.shape[2:] == (48, 48)
