"""train.py and test.py in this process: resuming, extending, and results that are none."""

import csv
import pickle
import re

import numpy as np
import pytest

from training import run_folder
from training.best import BestEpoch
from weights import checkpoint

FLAGS = ["--arch", "RepVGGA0", "--size", "32", "--batch-size", "4", "--workers", "0",
         "--warmup-epochs", "0", "--print-freq", "1"]  # fmt: skip


@pytest.fixture
def train(command, small_repvgg_a0, image_folder, tmp_path, monkeypatch):
    """A function that runs train.py on few images: (exit status, output, errors)."""
    monkeypatch.setattr(run_folder, "_curves", lambda _: b"")  # drawing takes longest
    data = image_folder(tmp_path / "data", train=4, val=2)

    def run(*flags):
        return command("train", "--data", data, "--save", tmp_path, *FLAGS, *flags)

    run.data, run.home = data, tmp_path / "RepVGGA0"
    return run


def test_a_finished_run_is_extended_and_keeps_its_best(train):
    assert train("--tag", "a", "--epochs", "1")[0] == 0
    assert not list(train.home.glob("a/.*"))
    status, out, err = train("--tag", "a", "--epochs", "3", "--resume", "auto")
    assert status == 2 and "had epochs 1, and now it is 3; add --extend to go on" in err
    status, _, err = train("--tag", "a", "--epochs", "3", "--extend")
    assert status == 2 and "--extend continues a run; give --resume too" in err
    resume = ["--resume", train.home / "a" / "latest.pkl"]
    status, out, err = train("--tag", "b", "--epochs", "3", "--extend", *resume)
    assert status == 0 and "going on to 3 epochs instead of 1" in out, err
    rows = (train.home / "b" / "metrics.csv").read_text().splitlines()[1:]
    assert [row.split(",")[0] for row in rows] == ["1", "2", "3"]
    rates = [float(row.split(",")[2]) for row in rows]
    assert rates[0] == 0 and rates[1] == pytest.approx(0.1 * 4 / 256 * 0.25) and rates[2] == 0
    assert pickle.loads((train.home / "b" / "best.pkl").read_bytes())["num_classes"] == 3
    assert re.search(r"best top-1 .*: (.*)", out)[1] == str(train.home / "b" / "best.pkl")


def test_best_exists_after_a_finished_run_is_resumed_elsewhere(train):
    assert train("--tag", "a", "--epochs", "1")[0] == 0
    resume = ["--epochs", "1", "--resume", train.home / "a" / "latest.pkl"]
    status, out, _ = train("--tag", "b", *resume)
    named = out.splitlines()[-1].rpartition(": ")[2]
    assert status == 0 and named == str(train.home / "b" / "best.pkl")
    assert (train.home / "b" / "best.pkl").exists()
    (train.home / "a" / "best.pkl").unlink()
    status, out, _ = train("--tag", "c", *resume)
    last = out.splitlines()[-1]
    assert status == 0 and "warning: there is no best.pkl of the epochs so far" in out
    assert last.startswith("no epoch was left to train") and last.endswith("c/latest.pkl")
    status, out, _ = train("--tag", "d", *resume, "--epochs", "2", "--extend")
    assert status == 0 and "in epoch 2: " in out.splitlines()[-1]
    assert (train.home / "d" / "best.pkl").exists()


def test_a_renamed_class_is_refused_from_the_command_line(train):
    assert train("--tag", "a", "--epochs", "1")[0] == 0
    for split in ("train", "val"):
        (train.data / split / "apple").rename(train.data / split / "zebra")
    status, _, err = train("--tag", "a", "--epochs", "1", "--resume", "auto")
    assert status == 2 and len(err.splitlines()) == 1
    assert "had other classes: class 'apple' is now 'zebra'" in err
    assert train("--tag", "new", "--epochs", "1", "--lr", "x")[0] == 2
    resume = ["--resume", train.home / "a" / "latest.pkl"]
    assert train("--tag", "new", "--epochs", "1", *resume)[0] == 2
    assert not (train.home / "new").exists()  # nothing is left of a run that did not begin


def test_the_first_loss_is_the_first_steps(train):
    status, out, _ = train("--epochs", "1")
    losses = re.findall(r"step \d+/3: loss ([\d.]+), top-1 ([\d.]+)", out)
    assert status == 0 and len(losses) == 3 and all(float(loss) > 0 for loss, _ in losses)


@pytest.mark.parametrize("split, kind", [("train", "training"), ("val", "validation")])
def test_no_image_that_can_be_read_is_an_error_and_no_best(train, command, split, kind):
    assert train("--tag", "good", "--epochs", "1")[0] == 0
    for file in (train.data / split).rglob("*.jpg"):
        file.write_bytes(b"nothing")
    status, out, err = train("--tag", "a", "--epochs", "1", "--skip-bad-images")
    assert status == 2 and f"none of the {kind} images could be read" in err
    assert "loss 0.0000" not in out and not (train.home / "a" / "best.pkl").exists()
    if split == "val":
        model = ["--model", train.home / "good" / "best.pkl", "--data", train.data]
        status, out, err = command("test", *model, "--skip-bad-images")
        assert status == 2 and "none of the images could be read" in err and "top-1" not in out


def test_logits_that_are_not_finite_have_no_accuracy(train, command):
    assert train("--tag", "a", "--epochs", "1")[0] == 0
    best = checkpoint.read(train.home / "a" / "best.pkl")
    best.state_dict["linear.weight"][...] = 3e38
    checkpoint.save(best, train.home / "inf.pkl")
    status, out, err = command("test", "--model", train.home / "inf.pkl", "--data", train.data)
    assert status == 2 and "top-1" not in out
    assert "inf.pkl in train form computes infinities or NaN for 6 of 6 images; use other" in err


def test_one_image_on_maps_of_1x1_is_a_warning(train):
    for flags, warns in (
        (["--batch-size", "1"], True),
        (["--batch-size", "1", "--in-chans", "1"], True),
        (["--batch-size", "4", "--accumulate", "4"], True),
        (["--batch-size", "2"], False),
        (["--batch-size", "1", "--size", "64"], False),
    ):
        status, out, err = train("--epochs", "1", *flags)
        assert status == 0, err
        assert ("see a single number per channel" in out) == warns, (flags, out, err)


def test_the_best_and_the_last_epochs_are_kept(train):
    flags = ["--tag", "a", "--epochs", "4", "--keep", "1", "--ema", "0.5"]
    assert train(*flags, "--lr", "1")[0] == 0
    folder = train.home / "a"
    rows = list(csv.DictReader((folder / "metrics.csv").read_text().splitlines()))
    ranked = sorted(rows, key=lambda row: (-float(row["ema_top1"]), int(row["epoch"])))
    expected = {"4", ranked[0]["epoch"]}
    files = {file.stem.removeprefix("epoch-"): file for file in folder.glob("epoch-*.pkl")}
    assert files.keys() == expected
    assert files[ranked[0]["epoch"]].read_bytes() == (folder / "best.pkl").read_bytes()
    last = checkpoint.read(files["4"])  # of the averaged weights, as best.pkl
    average = checkpoint.read(folder / "latest.pkl").training["ema"]
    for name, value in last.state_dict.items():
        np.testing.assert_array_equal(value, average[name].reshape(value.shape), err_msg=name)
    again = train(*flags[:2], "--epochs", "4", "--ema", "0.5", "--lr", "1", "--resume", "auto")
    assert again[0] == 0 and set(folder.glob("epoch-*.pkl")) == set(files.values())


def test_as_many_of_the_best_as_of_the_last():
    history = [{"epoch": i, "val_top1": top1} for i, top1 in enumerate((5, 9, 9, 3, 4, 2, 1), 1)]
    best = BestEpoch("val_top1")
    assert best.kept(history, 2) == {2, 3, 6, 7} and best.kept(history, 1) == {2, 7}
    assert best.kept(history, 0) == set() and best.kept(history[:2], 3) == {1, 2}
