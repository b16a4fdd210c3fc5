"""Whether a run may continue another: what is compared, and records of older versions."""

from dataclasses import replace

import models
from models import cpu
from models.cpu import fast

import numpy as np
import pytest

from data.augment import Augmentation
from data.datasets import Dataset
from data.loader import Loader
from data.transforms import Preprocessing
from training import low_memory, resume
from training.settings import Settings
from training.trainer_inputs import Data
from utils import UserError
from weights import checkpoint

PREPROCESSING = Preprocessing(size=32)
SETTINGS = Settings(2, 4, 0.1, custom_l2=True, milestones=(0.5, 1.5))
AUGMENTATION = Augmentation(mixup=0.2, repeats=2)


def data(augment=AUGMENTATION, images=8, preprocessing=PREPROCESSING):
    pixels, labels = np.zeros((images, 32, 32, 3), np.uint8), np.zeros(images, np.int32)
    dataset = Dataset("black", pixels, labels, ["any"], augment)
    return Data(*(Loader(dataset, preprocessing, 4, workers=0) for _ in range(2)))


@pytest.fixture
def saved(tiny):
    """A checkpoint with the record of a run, without weights' worth of training."""

    def make(**changed):
        record = resume.record(SETTINGS, data()) | changed
        return checkpoint.of_model(tiny(), PREPROCESSING, ["any"] * 10, record)

    return make


def test_the_same_run_goes_on_and_other_versions_are_a_warning(saved):
    assert resume.check(saved(), SETTINGS, data()) == []
    versions = saved().training["versions"] | {"numpy": "1.0"}
    (warning,) = resume.check(saved(versions=versions), SETTINGS, data())
    assert warning.startswith("warning: numpy was 1.0 and is now ")
    for name in ("pillow", "turbojpeg", "device"):
        versions = saved().training["versions"] | {name: "other"}
        (warning,) = resume.check(saved(versions=versions), SETTINGS, data())
        assert warning.startswith(f"warning: {name} was other and is now ")


def test_a_run_computes_as_before(saved, monkeypatch):
    monkeypatch.delenv("REPARAM_CPU", raising=False)
    versions = saved().training["versions"]
    assert versions["REPARAM_CPU"] == "fast" and int(versions["threads"]) > 0
    older = {
        name: value for name, value in versions.items() if name not in ("REPARAM_CPU", "threads")
    }
    matmul = saved(versions=older | {"REPARAM_CPU": "matmul"})
    assert resume.cpu_path(None, low_memory=False) == "fast"
    assert resume.cpu_path(saved(), low_memory=False) == "fast"
    assert resume.cpu_path(saved(), low_memory=True) == "matmul"
    for record in (matmul, saved(versions=older)):
        assert resume.cpu_path(record, low_memory=False) == "matmul"
        with cpu.using("matmul"):
            assert resume.check(record, SETTINGS, data()) == []
    monkeypatch.setenv("REPARAM_CPU", "stock")
    assert resume.cpu_path(saved(), low_memory=True) == "stock"
    (warning,) = resume.check(matmul, SETTINGS, data())
    assert warning.startswith("warning: REPARAM_CPU was matmul and is now stock: ")


def test_a_run_without_compiled_programs_says_so(saved, monkeypatch):
    monkeypatch.delenv("REPARAM_CPU", raising=False)
    monkeypatch.setattr(fast, "available", lambda: False)
    versions = saved().training["versions"]
    assert versions["REPARAM_CPU"] == "matmul" and not versions.keys() & {"numba", "threads"}


def test_the_memory_is_estimated_for_the_way_in_which_the_run_goes_on(
    command, image_folder, tmp_path, monkeypatch
):
    monkeypatch.delenv("REPARAM_CPU", raising=False)
    record = resume.record(SETTINGS, data())
    record["versions"]["REPARAM_CPU"] = "matmul"
    path = tmp_path / "latest.pkl"
    model = models.create("RepGhost050", 3)
    checkpoint.save(checkpoint.of_model(model, PREPROCESSING, ["a", "b", "c"], record), path)
    ways = []

    def seen(*_):
        ways.append(cpu.path())
        raise UserError("enough")

    monkeypatch.setattr(low_memory, "_memory_is_short", seen)
    flags = ["--data", image_folder(), "--save", tmp_path, "--arch", "RepGhost050"]
    status, _, err = command("train", *flags, "--resume", path)
    assert status == 2 and ways == ["matmul"], err


@pytest.mark.parametrize(
    "settings, now, sentence",
    [
        ({"lr": 0.2}, data(), "had lr 6.4, and now it is 12.8"),  # as --lr has it, for 256 images
        ({"custom_l2": False}, data(), "had custwd True, and now it is False"),
        ({"milestones": (0.5,)}, data(), r"had milestones \(0.5, 1.5\), and now it is \(0.5,\)"),
        ({}, data(replace(AUGMENTATION, mixup=0.0)), "had mixup 0.2, and now it is 0.0"),
        ({}, data(replace(AUGMENTATION, repeats=1)), "had repeated-augmentation 2, and now it"),
        ({}, data(images=9), "had 8 training images, and now there are 9"),
        ({}, data(preprocessing=Preprocessing(size=48)), "give the same --size, --crop-ratio and"),
    ],
)
def test_another_run_is_a_sentence(saved, settings, now, sentence):
    with pytest.raises(UserError, match=sentence):
        resume.check(saved(), replace(SETTINGS, **settings), now)


@pytest.mark.parametrize(
    "flags",
    [
        ("--size", "48"),
        ("--crop-ratio", "1"),
        ("--mean", "0.4", "0.4", "0.4"),
        ("--color", "bgr"),
        ("--resize-backend", "opencv"),
    ],
    ids=lambda flags: flags[0],
)
def test_a_run_does_not_go_on_with_another_preprocessing(flags, command, image_folder, tmp_path):
    photos = image_folder()
    first, again = (
        ["--data", photos, "--save", tmp_path, "--arch", "RepGhost050", "--tag", "a",
         "--size", "32", "--batch-size", "4", *more]
        for more in (["--epochs", "1"], ["--epochs", "2", "--extend", "--resume", "auto"])
    )  # fmt: skip
    status, _, err = command("train", *first)
    assert status == 0, err
    latest = tmp_path / "RepGhost050" / "a" / "latest.pkl"
    before = latest.read_bytes()
    status, _, err = command("train", *again, "--warmup-epochs", "0", *flags)
    assert status == 2 and "the run to resume had" in err and "give the same --size" in err, err
    assert latest.read_bytes() == before
    status, _, err = command("train", *again, "--warmup-epochs", "0")
    assert status == 0, err


@pytest.mark.parametrize("flag", ["--freeze", "--qat"])
def test_a_run_that_is_not_there_has_no_trained_network(flag, command, image_folder, tmp_path):
    flags = ["--data", image_folder(), "--save", tmp_path, "--arch", "RepGhost050"]
    status, _, err = command("train", *flags, flag, "--tag", "typo", "--resume", "auto")
    assert status == 2 and f"has found no run, and {flag} needs a trained network" in err, err
    assert not any(tmp_path.rglob("*.pkl"))


def test_weights_alone_are_a_sentence(tiny):
    weights = checkpoint.of_model(tiny(), PREPROCESSING)
    with pytest.raises(UserError, match="has weights only"):
        resume.check(weights, SETTINGS, data())


def test_settings_that_older_runs_had_not_count_as_their_defaults(saved):
    record = saved().training
    for name in ("qat", "freeze", "agc"):
        del record["settings"][name]
    del record["augmentation"]["erasing_count"]
    old = {key: record[key] for key in ("settings", "augmentation")}
    assert resume.check(saved(**old), SETTINGS, data()) == []
    with pytest.raises(UserError, match="had agc 0.0, and now it is 0.02"):
        resume.check(saved(**old), replace(SETTINGS, agc=0.02), data())
    del record["settings"]["custom_l2"]
    with pytest.raises(UserError, match="had custwd False, and now it is True"):
        resume.check(saved(**old), SETTINGS, data())
    assert resume.check(saved(augmentation=None), SETTINGS, data(Augmentation())) == []


def test_everything_recorded_is_data(saved, tmp_path):
    """A checkpoint's reader accepts plain values alone."""
    checkpoint.save(saved(), tmp_path / "latest.pkl")
    again = checkpoint.read(tmp_path / "latest.pkl")
    assert again.training == saved().training
    assert models.canonical_name(again.arch) == "RepVGGA0"
