"""Resuming on other images: classes and validation set are compared by name; --extend; best.pkl."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from data import class_order, datasets
from data.loader import Loader
from data.readers import class_folders
from data.transforms import Preprocessing
from training import resume
from training.best import BestEpoch
from training.settings import Settings
from training.trainer_inputs import Data
from utils import UserError
from weights import checkpoint

SMALL = Preprocessing(size=32)
SETTINGS = Settings(2, 4, 0.1)


def folder(root):
    sets = [class_folders.read(root, split) for split in ("train", "val")]
    sets[1] = class_order.with_class_order(sets[1], len(sets[0].classes), sets[0].classes)
    return Data(*(Loader(dataset, SMALL, 4) for dataset in sets))


@pytest.fixture
def images(image_folder):
    return image_folder(train=4, val=3)


@pytest.fixture
def saved(images, tiny):
    """The checkpoint of a run on `images`, without what older versions did not record."""

    def make(*without, **changed):
        record = resume.record(SETTINGS, folder(images)) | changed
        record = {name: value for name, value in record.items() if name not in without}
        return checkpoint.of_model(tiny(num_classes=3), SMALL, ["apple", "pear", "plum"], record)

    return make


NEW = ("classes", "validation", "training_names")


def test_the_same_images_elsewhere_are_the_same(saved, images, tmp_path):
    before = saved()
    moved = shutil.copytree(images, tmp_path / "elsewhere" / "deep")
    assert resume.check(before, SETTINGS, folder(moved)) == []


@pytest.mark.parametrize("without", [(), NEW])
def test_a_renamed_class_is_refused_by_name(saved, images, without):
    before = saved(*without)
    for split in ("train", "val"):
        (images / split / "apple").rename(images / split / "zebra")
    with pytest.raises(UserError, match="class 'apple' is now 'zebra'; give the same --data"):
        resume.check(before, SETTINGS, folder(images))


def test_an_old_checkpoint_without_any_names_goes_on(saved, images):
    before = saved(*NEW)
    before.classes = None
    assert resume.check(before, SETTINGS, folder(images)) == []


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda val: (val / "2.jpg").unlink(), "'pear' had 3 validation images, and now it has 2"),
        (lambda val: (val / "2.jpg").rename(val / "x.jpg"), "of class 'pear' have other names or"),
        (
            lambda val: (val / "2.jpg").write_bytes((val / "1.jpg").read_bytes() + b"\0"),
            "of class 'pear' have other names or sizes",
        ),
    ],
)
def test_another_validation_set_is_refused_by_its_class(saved, images, change, sentence):
    before, old = saved(), saved(*NEW)
    change(images / "val" / "pear")
    with pytest.raises(UserError, match=f"another validation set: .*{sentence}"):
        resume.check(before, SETTINGS, folder(images))
    assert resume.check(old, SETTINGS, folder(images)) == []


def test_renamed_training_images_are_a_warning(saved, images):
    before = saved()
    (images / "train" / "pear" / "0.jpg").rename(images / "train" / "pear" / "9.jpg")
    (warning,) = resume.check(before, SETTINGS, folder(images))
    assert "training images have other names" in warning


def test_images_in_memory_are_compared_by_their_pixels(tiny):
    train, val = datasets.digits()

    def data(val):
        return Data(*(Loader(dataset, SMALL, 4) for dataset in (train, val)))

    record = resume.record(SETTINGS, data(val))
    before = checkpoint.of_model(tiny(), SMALL, val.classes, record)
    assert resume.check(before, SETTINGS, data(val)) == []
    pixels = val.images.copy()
    pixels[np.flatnonzero(val.labels == 7)[0], 0, 0] += 1
    with pytest.raises(UserError, match="of class '7' have other names or sizes"):
        resume.check(before, SETTINGS, data(replace(val, images=pixels)))


def test_more_epochs_need_extend(saved, images):
    before, data = saved(), folder(images)
    longer, shorter = replace(SETTINGS, epochs=5), replace(SETTINGS, epochs=1)
    with pytest.raises(UserError, match="had epochs 2, and now it is 5; add --extend to go on to"):
        resume.check(before, longer, data)
    (said,) = resume.check(before, longer, data, extend=True)
    assert "5 epochs instead of 2" in said and "learning rate is that of a run of 5" in said
    for extend in (False, True):
        with pytest.raises(UserError, match="had epochs 2, and now it is 1; give --epochs 2"):
            resume.check(before, shorter, data, extend)
    assert resume.check(before, SETTINGS, data, extend=True) == []
    with pytest.raises(UserError, match=re.escape("had lr 6.4, and now it is 12.8")):
        resume.check(before, replace(longer, lr=0.2), data, extend=True)


def test_the_best_epoch_is_of_those_whose_weights_are_there():
    history = [{"epoch": i + 1, "val_top1": top1} for i, top1 in enumerate((50.0, 70.0, 60.0))]
    best = BestEpoch("val_top1")
    assert best.row([]) is None and best.improves([], 0.0)
    assert best.row(history)["epoch"] == 2
    assert best.improves(history, 71.0) and not best.improves(history, 70.0)
    assert best.load_state_dict({"history": history}, best_exists=True) is None
    assert best.state_dict() == {}
    warning = best.load_state_dict({"history": history}, best_exists=False)
    assert "epoch 2 was the best (70.00 %)" in warning
    assert best.row(history) is None and best.improves(history, 0.0)
    history.append({"epoch": 4, "val_top1": 65.0})
    again = BestEpoch("val_top1")
    assert again.load_state_dict({"history": history, **best.state_dict()}, True) is None
    assert again.row(history)["epoch"] == 4
