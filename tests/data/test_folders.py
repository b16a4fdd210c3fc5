"""Folders as people have them: hidden names, links, other files, other names of the splits."""

import os
import shutil

import cv2
import numpy as np
import pytest

from data import datasets, sources
from data.folders import LeftOut, image_files
from data.holdout import hold_out
from data.readers import class_folders
from utils import UserError, shown


@pytest.fixture
def root(image_folder):
    return image_folder(train=4, val=2)  # 3 classes


def names(files, root):
    return [str(file.relative_to(root)) for file in files]


def test_hidden_and_housekeeping_names_are_no_images_and_no_classes(root):
    content = (root / "train/apple/0.jpg").read_bytes()
    for place in ("train/.ipynb_checkpoints", "train/@eaDir", "train/__MACOSX/apple",
                  "train/apple/.ipynb_checkpoints", "train/apple/@eaDir/0.jpg"):  # fmt: skip
        (root / place).mkdir(parents=True)
        (root / place / "copy.jpg").write_bytes(content)
    for place in ("train/.DS_Store", "train/apple/._0.jpg", "train/pear/Thumbs.db"):
        (root / place).write_bytes(b"\0\5")
    train, val = class_folders.read(root, "train"), class_folders.read(root, "val")
    assert train.classes == ["apple", "pear", "plum"] and len(train) == 12
    assert (train.left_out.hidden, val.left_out.hidden) == (8, 0)
    [warning] = datasets.left_out([train, val])
    assert warning == (f"warning: left out: 8 hidden or housekeeping names in {root / 'train'}")
    assert datasets.left_out([val]) == []
    assert len(list(sources.expand([str(root / "train")]))) == 12


def test_links_are_followed(root, tmp_path):
    shutil.copytree(root / "train/apple", tmp_path / "elsewhere/fox")
    shutil.copytree(root / "train/apple", tmp_path / "elsewhere/more")
    (root / "train/fox").symlink_to("../../elsewhere/fox")
    (root / "train/plum/more").symlink_to(tmp_path / "elsewhere/more")
    (root / "train/pear/9.jpg").symlink_to("../apple/0.jpg")
    train = class_folders.read(root, "train")
    assert train.classes == ["apple", "fox", "pear", "plum"]
    assert np.bincount(train.labels).tolist() == [4, 4, 5, 8]
    assert datasets.left_out([train]) == []


def test_links_that_lead_back_are_named(root, tmp_path):
    (root / "train/up").symlink_to("..")
    (root / "train/apple/back").symlink_to(root / "train")
    (root / "train/apple/self.jpg").symlink_to("self.jpg")
    train = class_folders.read(root, "train")
    assert train.classes == ["apple", "pear", "plum"] and len(train) == 13  # with self.jpg
    [warning] = datasets.left_out([train])
    assert f"the link {root / 'train/up'} to a folder above it and 1 more in" in warning
    (tmp_path / "a").mkdir()
    (tmp_path / "a/b").symlink_to(tmp_path / "c")
    (tmp_path / "c").mkdir()
    (tmp_path / "c/a").symlink_to(tmp_path / "a")
    shutil.copy(root / "train/apple/0.jpg", tmp_path / "a/x.jpg")
    left_out = LeftOut()
    assert names(image_files(tmp_path / "a", left_out), tmp_path) == ["a/x.jpg"]
    assert left_out.loops == [str(tmp_path / "a/b/a")]


def test_every_format_counts_and_what_is_none_is_counted(root):
    image = np.zeros((8, 8, 3), np.uint8)
    for name in ("a.ppm", "b.jfif", "c.jpe", "d.JPG", "e.PNG", "f.pgm", "g.tga", "h.avif", "i.jp2"):
        (root / "train/apple" / name).write_bytes(cv2.imencode(".jpg", image)[1].tobytes())
    for place in ("train/apple/notes.txt", "train/pear/x.heic", "train/LICENSE", "train/y.jpg"):
        (root / place).write_bytes(b"-")
    train = class_folders.read(root, "train")
    assert len(train) == 12 + 9
    assert train.image(4).shape == (8, 8, 3)
    [warning] = datasets.left_out([train, class_folders.read(root, "val")])
    assert "3 files of other kinds (.heic, .txt, no suffix), 1 image outside the class" in warning
    assert len(warning.splitlines()) == 1


def test_the_order_is_that_of_the_paths(root):
    for name in ("a-b", "a", "a.c", "B"):
        (root / "train/apple" / name).mkdir()
        shutil.copy(root / "train/apple/0.jpg", root / "train/apple" / name / "z.jpg")
    files = image_files(root / "train")
    assert files == sorted(files) and len(files) == 16


@pytest.mark.parametrize("name", ["valid", "validation", "test"])
def test_the_validation_set_has_many_names(root, name):
    os.rename(root / "val", root / name)
    val = class_folders.read(root, "val")
    assert len(val) == 6 and val.split == f"{name}/"
    (root / "val").mkdir()
    shutil.copytree(root / "train/apple", root / "val/apple")
    assert class_folders.read(root, "val").split == "val/"
    assert len(class_folders.read(root, name, exact=True)) == 6
    with pytest.raises(UserError, match="has no tset/; give one of its folders to --split: "):
        class_folders.read(root, "tset", exact=True)


def test_without_a_validation_set_holdout_is_named(root):
    shutil.rmtree(root / "val")
    with pytest.raises(UserError, match=r"--holdout 0\.1 takes a tenth of train/"):
        class_folders.read(root, "val")


def test_a_single_class_is_warned_about(root):
    assert datasets.single_class(class_folders.read(root, "train")) == []
    (root / "deep/train").mkdir(parents=True)
    os.rename(root / "train", root / "deep/train/images")
    train = class_folders.read(root / "deep", "train")
    [warning] = datasets.single_class(train)
    assert warning.startswith("warning: images is the only class")
    assert "such as apple and pear" in warning and warning.endswith(f"into {root}/deep/train")
    assert datasets.single_class(class_folders.read(root / "deep/train", "images", True)) == []


def test_a_folder_that_cannot_be_read_is_named(root, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UserError, match=r"cannot read the folder .*apple \(Permission denied\)"):
        image_files(root / "train/apple")


# ---------------------------------------------------------------- names


def test_names_in_any_encoding(root):
    raw = os.fsencode(root / "train")
    os.rename(raw + b"/apple", raw + b"/caf\xe9")
    os.rename(raw + b"/pear/0.jpg", raw + b"/pear/\xe9t\xe9\n.jpg")
    train = class_folders.read(root, "train")
    assert train.classes == ["caf\\xe9", "pear", "plum"]
    assert train.image(0).shape == (40, 40, 3)
    [odd] = [file for file in train.images if "\n" in file.name]
    assert shown(odd).endswith(r"pear/\xe9t\xe9\n.jpg")
    assert shown("图像/é.jpg") == "图像/é.jpg"
    odd.write_bytes(b"")
    with pytest.raises(UserError, match=r"the image .*pear/\\xe9t\\xe9\\n.jpg is corrupt"):
        train.image(train.images.index(odd))


# ---------------------------------------------------------------- --holdout


def test_holdout_depends_on_the_seed_and_the_names_alone(root, tmp_path):
    def held_out(folder, fraction=0.25, seed=0):
        train, val = hold_out(class_folders.read(folder, "train"), fraction, seed)
        assert not {*train.images} & {*val.images} and len(train) + len(val) == 12
        assert train.image(0).shape[2] == 3 and val.classes == train.classes
        assert [file.parent.name for file in val.images] == [val.classes[i] for i in val.labels]
        return names(val.images, folder)

    first = held_out(root)
    assert [name.split("/")[1] for name in first] == ["apple", "pear", "plum"]
    shutil.copytree(root, tmp_path / "copy")
    assert held_out(tmp_path / "copy") == first == held_out(root)
    assert len({tuple(held_out(root, seed=seed)) for seed in range(8)}) > 4
    assert {*first} < {*held_out(root, 0.5)} and len(held_out(root, 0.5)) == 6
    assert len(held_out(root, 0.01)) == 3 and len(held_out(root, 0.9)) == 9


def test_holdout_leaves_an_image_to_train_on(root):
    for name in ("apple", "pear", "plum"):
        for number in (1, 2, 3):
            (root / f"train/{name}/{number}.jpg").unlink()
    with pytest.raises(UserError, match="no class of photos has two images"):
        hold_out(class_folders.read(root, "train"), 0.5, 0)
