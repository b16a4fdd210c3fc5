"""What the commands say about the folders that they read, and --holdout and --split."""

import json
import os
import shutil

import pytest

from data import readers
from data.holdout import hold_out


@pytest.fixture
def train(command, tmp_path, small_repvgg_a0):
    """Runs train.py for an epoch on a folder: (exit status, output, error)."""

    def run(data, *flags):
        usual = ("--size", 32, "--batch-size", 4, "--epochs", 1, "--workers", 0, "--seed", 3)
        return command("train", "--data", data, *usual, "--save", tmp_path / "runs", *flags)

    return run


def test_holdout_is_recorded_and_checked(train, command, image_folder, tmp_path):
    data = image_folder(train=4, val=1)
    shutil.rmtree(data / "val")
    status, _, error = train(data)
    assert status == 2 and "has no val/ or test/" in error and "--holdout 0.1" in error
    status, output, _ = train(data, "--holdout", 0.25, "--tag", "a")
    assert status == 0
    assert "9 training and 3 validation images (--holdout 0.25), 3 classes" in output
    folder = tmp_path / "runs/RepVGGA0/a"
    assert json.loads((folder / "run.json").read_text())["arguments"]["holdout"] == "0.25"
    for flags, reason in (
        (("--holdout", 0.5), "had holdout 0.25, and now it is 0.5"),
        (("--holdout", 0.25, "--seed", 4), "had seed 3, and now it is 4"),
    ):
        status, _, error = train(data, "--tag", "a", "--resume", "auto", *flags)
        assert status == 2 and reason in error
    status, output, _ = train(data, "--tag", "a", "--resume", "auto", "--holdout", 0.25)
    assert status == 0 and "resuming" in output
    status, _, error = command("train", "--holdout", 0.1)
    assert status == 2 and "give --data too" in error


def test_images_are_not_for_training_and_for_validation_at_once(train, image_folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    images = sorted(image_folder(train=4, val=1).rglob("train/*/*"))
    for number, file in enumerate(images):
        shutil.copy(file, flat / f"{number}{file.suffix}")
    status, _, error = train(flat)
    assert status == 2 and "are in no class folders; put val_label.txt" in error
    names = sorted(file.name for file in flat.iterdir())
    (flat / "val_label.txt").write_text("".join(f"{name} {len(name) % 2}\n" for name in names))
    status, _, error = train(flat, "--val-list", flat / "val_label.txt")
    assert status == 2 and "would be both for training and for validation; give --holdout" in error


def test_warnings_come_before_training_and_names_are_escaped(train, image_folder, tmp_path):
    data = image_folder(train=4, val=1)
    for split in ("train", "val"):
        for name in ("pear", "plum"):
            shutil.rmtree(data / split / name)
        apple = os.fsencode(data / split / "apple")
        os.rename(apple, os.fsencode(data / split) + b"/caf\xe9")
    (data / "train/.DS_Store").write_bytes(b"-")
    (data / "val/x.txt").write_bytes(b"-")
    status, output, _ = train(data, "--tag", "a")
    assert status == 0
    log = (tmp_path / "runs/RepVGGA0/a/log.txt").read_text()
    assert log in output
    lines = log.splitlines()
    assert lines[1].startswith("warning: left out: 1 hidden or housekeeping name in ")
    assert "; 1 file of other kinds (.txt) in " in lines[1]
    assert lines[2].startswith("warning: caf\\xe9 is the only class")
    assert lines[3].startswith("epoch 1/1")


def test_what_training_held_out_can_be_tested(train, command, image_folder, tmp_path):
    data = image_folder(train=8, val=1)
    shutil.rmtree(data / "val")
    assert train(data, "--holdout", 0.25, "--tag", "a")[0] == 0
    trained_on, _ = hold_out(readers.open_dataset(str(data), "train"), 0.25, seed=3)
    for name in trained_on.names:
        (data / "train" / name).write_bytes(b"only others can be read")
    model = tmp_path / "runs/RepVGGA0/a/best.pkl"
    usual = ("test", "--model", model, "--data", data, "--workers", 0, "--holdout", 0.25)
    status, out, error = command(*usual, "--seed", 3, "--json")
    assert status == 0, error
    answer = json.loads(out)
    assert answer["split"] == "--holdout 0.25" and answer["results"][0]["total"] == 6
    status, _, error = command(*usual)
    assert status == 2 and "corrupt" in error
    status, _, error = command(*usual, "--split", "train")
    assert status == 2 and "--holdout takes images from those of training" in error


def test_split_and_names_in_any_encoding(train, command, image_folder, tmp_path):
    data = image_folder(train=4, val=2)
    pear = os.fsencode(data / "val/pear")
    os.rename(pear + b"/0.jpg", pear + b"/\xe9t\xe9.jpg")
    (data / "val/pear/1.jpg").rename(data / "val/pear/图像.jpg")
    os.rename(data / "val", data / "validation")
    assert train(data, "--tag", "a")[0] == 0
    model = tmp_path / "runs/RepVGGA0/a/best.pkl"

    usual = ("test", "--model", model, "--data", data, "--workers", 0)
    assert "testing on validation/ of photos: 6 images" in command(*usual)[1]
    answer = json.loads(command(*usual, "--split", "train", "--json")[1])
    assert answer["split"] == "train" and answer["results"][0]["total"] == 12
    status, _, error = command(*usual, "--split", "val")
    assert status == 2 and "has no val/; give one of its folders to --split: train, valid" in error
    status, _, error = command("test", "--model", model, "--split", "train")
    assert status == 2 and "--split names a folder in --data" in error

    names = [f"{data}/validation/pear/\\xe9t\\xe9.jpg", f"{data}/validation/pear/图像.jpg"]
    usual = ("predict", data / "validation/pear", "--model", model)
    status, output, error = command(*usual, "--save", tmp_path / "labelled")
    assert status == 0 and error == ""
    assert {*names} < {*output.splitlines()}
    assert len(list((tmp_path / "labelled").iterdir())) == 2
    answer = json.loads(command(*usual, "--json")[1])
    assert {row["image"] for row in answer["images"]} == {*names}


def test_classes_that_one_part_lacks(train, image_folder, tmp_path):
    data = image_folder(train=4, val=2)
    shutil.rmtree(data / "val/plum")
    status, output, _ = train(data, "--tag", "a")
    assert status == 0
    assert "warning: no validation image is of 1 of the 3 classes: plum\n" in output
    os.rename(data / "val/pear", data / "val/fox")
    status, _, error = train(data, "--tag", "b")
    assert status == 2
    assert "have the class 'fox', which the training images lack; add training images" in error
    assert not (tmp_path / "runs/RepVGGA0/b").exists()
