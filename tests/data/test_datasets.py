"""Data sets: the digits, folders of images, and what is wrong with them."""

import os
from dataclasses import replace

import numpy as np
import pytest

from data import class_names, class_order, datasets
from data.readers import class_folders
from utils import UserError


def test_the_digits_are_split_once_and_for_all():
    train, val = datasets.digits()
    assert (len(train), len(val)) == (1437, 360)
    assert train.image(0).shape == (32, 32, 3)
    assert len(set(val.labels)) == 10 and val.classes == list("0123456789")
    again = datasets.digits()[1]
    np.testing.assert_array_equal(val.images, again.images)


def test_an_image_folder_is_read_in_order(image_folder):
    root = image_folder()
    train, val = class_folders.read(root, "train"), class_folders.read(root, "val")
    assert train.classes == ["apple", "pear", "plum"]
    assert len(train) == 48 and len(val) == 15
    assert val.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert val.image(7).dtype == np.uint8
    assert val.image(7)[..., 1].mean() > 150 > val.image(7)[..., 0].mean()  # pears are green
    os.rename(root / "val", root / "test")
    assert len(class_folders.read(root, "val")) == 15


def test_what_is_missing_is_named(image_folder, tmp_path):
    with pytest.raises(UserError, match="there is no data folder"):
        class_folders.read(tmp_path / "none", "train")
    with pytest.raises(UserError, match="has no val/ or test/"):
        (tmp_path / "half" / "train").mkdir(parents=True)
        class_folders.read(tmp_path / "half", "val")
    with pytest.raises(UserError, match="has no class folders"):
        class_folders.read(tmp_path / "half", "train")
    root = image_folder()
    (root / "train" / "quince").mkdir()
    (root / "train" / "quince" / "notes.txt").write_text("none yet")
    with pytest.raises(UserError, match="quince has no images"):
        class_folders.read(root, "train")


def test_folders_with_numbers_are_the_labels_of_imagenet(image_folder, capsys):
    root = image_folder(classes=("0", "217", "10"))
    subset = class_folders.read(root, "val")
    wnids = list(class_names.imagenet_classes())
    for classes in (None, wnids):
        scored = class_order.with_class_order(subset, 1000, classes)
        assert scored.labels.tolist() == [0] * 5 + [10] * 5 + [217] * 5
        assert scored.classes == wnids
    assert capsys.readouterr().err == ""
    other = class_order.with_class_order(replace(subset, classes=["0", "10", "9"]), 3, None)
    assert other.classes == ["0", "10", "9"]
    assert "taken in the order of their texts, 0, 10, 9 ..., as PyTorch" in capsys.readouterr().err
    with pytest.raises(UserError, match="has the label 1000, but there are the classes 0 to 999"):
        class_order.with_class_order(replace(subset, classes=["0", "10", "1000"]), 1000, None)


def test_training_images_in_folders_with_numbers_have_the_labels_of_imagenet(image_folder):
    """All 1,000 of them: a pretrained classifier is kept, so that its order counts."""
    few = class_folders.read(image_folder(classes=("0", "1", "10", "2")), "train")
    assert class_order.in_imagenets_order(few) is few
    names = sorted(map(str, range(1000)))
    labels = np.array([names.index("10"), names.index("999")], np.int32)
    train = class_order.in_imagenets_order(replace(few, labels=labels, classes=names))
    assert train.labels.tolist() == [10, 999]
    assert train.classes == list(class_names.imagenet_classes())


def test_labels_that_are_numbers_are_names_where_the_classes_are_numbers(image_folder, capsys):
    subset = class_folders.read(image_folder(classes=("0", "1", "10", "2")), "val")
    listed = replace(subset, labels=np.array([2] * 20, np.int32), numbered=True)
    assert class_order.with_class_order(listed, 4, subset.classes).labels.tolist() == [3] * 20
    assert "the label 2 for the class '2', not for '10'" in capsys.readouterr().err
    listed = replace(listed, labels=np.array([10] * 20, np.int32))  # no position
    assert class_order.with_class_order(listed, 4, subset.classes).labels.tolist() == [2] * 20
    listed = replace(listed, labels=np.array([3] * 20, np.int32))  # no name
    assert class_order.with_class_order(listed, 4, subset.classes).labels.tolist() == [3] * 20
    assert capsys.readouterr().err == ""


def test_numbers_match_whatever_zeros_they_begin_with(image_folder):
    subset = class_folders.read(image_folder(classes=("0", "1", "2")), "val")
    order = [f"{number:02d}" for number in range(11)]
    found = class_order.with_class_order(subset, 11, order)
    assert found.labels.tolist() == subset.labels.tolist() and found.classes == order
    assert class_order.positions(["7", "a"], ["007", "7", "a"]) == {"7": 1, "a": 2}


def test_labels_follow_the_network(image_folder, tmp_path):
    wnids = list(class_names.imagenet_classes())
    assert len(wnids) == 1000 and sorted(wnids) == wnids
    assert (wnids[0], wnids[217], wnids[701]) == ("n01440764", "n02102040", "n03888257")
    root = image_folder(tmp_path / "imagenette", classes=("n01440764", "n02102040", "n03888257"))
    subset = class_folders.read(root, "val")
    over_all = class_order.with_class_order(subset, 1000, None)
    assert over_all.labels.tolist() == [0] * 5 + [217] * 5 + [701] * 5
    own = class_order.with_class_order(subset, 3, ["n03888257", "n02102040", "n01440764"])
    assert own.labels.tolist() == [2] * 5 + [1] * 5 + [0] * 5
    assert class_order.with_class_order(subset, 3, None).labels.tolist() == subset.labels.tolist()
    with pytest.raises(UserError, match="has 3 classes, but the network was trained on 10"):
        class_order.with_class_order(subset, 10, None)
    with pytest.raises(UserError, match="does not know 'n01440764'"):
        class_order.with_class_order(subset, 2, ["cat", "dog"])


def test_names_of_classes():
    imagenet = class_names.in_english(None, 1000)
    assert (imagenet[0], imagenet[99], imagenet[701]) == ("tench", "goose", "parachute")
    assert class_names.in_english(["n03888257", "cat"], 2) == ["parachute", "cat"]
    assert class_names.in_english(None, 3) == ["0", "1", "2"]


def test_imagenets_english_names_are_its_identifiers():
    """OpenMMLab's files hold them, and the folders of ImageNet have the identifiers."""
    wnids, words = zip(*class_names.imagenet_classes().items(), strict=True)
    theirs = [f"{word}, a synonym".upper() for word in words]
    theirs[134], theirs[517] = "crane bird", "crane machine"
    assert class_names.with_wnids(theirs) == list(wnids)
    assert class_names.with_wnids(theirs[::-1]) == theirs[::-1]
    assert class_names.with_wnids(theirs[:10]) == theirs[:10]


def test_a_network_of_imagenet_takes_folders_with_english_names(image_folder):
    """Its own names are the identifiers, and English ones of a file become these."""
    root = image_folder()
    for old, new in (("apple", "tench"), ("pear", "Goldfish, Carassius auratus")):
        (root / "val" / old).rename(root / "val" / new)
    for plum in (root / "val/plum").iterdir():
        plum.unlink()
    (root / "val/plum").rmdir()
    wnids = list(class_names.imagenet_classes())
    val = class_order.with_class_order(class_folders.read(root, "val"), 1000, wnids)
    assert sorted({*val.labels.tolist()}) == [0, 1]
