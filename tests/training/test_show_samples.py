"""train.py --show-samples and the flags of the augmentation."""

import re

import cv2
import pytest

from data.augment import Augmentation
from data.datasets import DIGITS
from training import options


def settings(*arguments, usual=Augmentation()):  # noqa: B008
    return options.augmentation(options.parse("", list(arguments)), usual)


def test_flags_become_settings():
    assert settings() == Augmentation() and settings(usual=DIGITS) == DIGITS
    recipe = "--auto-augment rand-m9-mstd0.5-inc1 --mixup 0.8 --cutmix 1 --random-erasing 0.25"
    found = settings(*recipe.split(), "--repeated-augmentation", "3", "--color-jitter", "0.4")
    assert found == Augmentation(
        auto_augment="rand-m9-mstd0.5-inc1",
        mixup=0.8,
        cutmix=1.0,
        random_erasing=0.25,
        repeats=3,
        color_jitter=0.4,
    )
    found = settings("--padding-crop", "4", "--flip", "0.5", usual=DIGITS)
    assert (found.affine, found.padding_crop, found.flip) == (False, 4, 0.5)
    assert settings("--crop-scale", "0.5", "1").crop_scale == (0.5, 1.0)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--auto-augment", "rand-x"], "no augmentation policy 'rand-x' .*use none, v0"),
        (["--flip", "2"], "'2' is not a number of at least 0 and at most 1"),
        (["--crop-scale", "1", "0.2"], "takes the lower number first: --crop-scale 0.2 1"),
    ],
)
def test_wrong_flags_are_refused(command, arguments, message):
    status, _, err = command("train", *arguments)
    assert status == 2 and len(err.splitlines()) == 1
    assert re.search(message, err)


def test_a_contact_sheet_leaves_bad_images_out_where_asked(command, tmp_path, image_folder):
    data = image_folder()
    next((data / "train").glob("*/*")).write_bytes(b"no image")
    flags = ["--data", data, "--size", 48, "--show-samples", tmp_path / "sheet.png"]
    status, _, err = command("train", *flags)
    assert status == 2 and "leave such files out with --skip-bad-images" in err
    status, out, err = command("train", *flags, "--skip-bad-images")
    assert status == 0 and "47 samples of photos" in out, err


def test_a_contact_sheet_is_written_and_nothing_else(command, tmp_path, image_folder):
    data = image_folder()
    arguments = ["--show-samples", tmp_path / "sheet.png", "--save", tmp_path / "runs"]
    flags = ["--data", data, "--size", 48, "--mixup", 0.2, "--random-erasing", 1]
    status, out, err = command("train", *arguments, *flags)
    assert status == 0, err
    assert "48 samples of photos" in out
    assert cv2.imread(str(tmp_path / "sheet.png")).shape == (6 * 202 + 8, 8 * 168 + 8, 3)
    assert not (tmp_path / "runs").exists()
