"""The flags that say what a file of weights leaves unsaid, in every command that reads one."""

import json
import pickle

import models

import cv2
import numpy as np
import pytest

import cli
from tests.support import write_image_folder
from training import options, starting_point
from weights import checkpoint

COMMANDS = ["convert_pretrained_weight", "train", "test", "verify", "export", "quantize", "predict"]


@pytest.fixture
def state_dict(small_repvgg_a0, tmp_path):
    """A file as `mge.save(net.state_dict(), path)` writes it: nothing says its colour order."""
    path = tmp_path / "own.pkl"
    model = models.create("RepVGGA0", 3)
    path.write_bytes(pickle.dumps({k: np.array(v) for k, v in model.state_dict().items()}))
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_reads_weights_takes_them(command, name):
    status, out, _ = command(name, "--help")
    assert status == 0
    assert all(flag in out for flag in cli.PREPROCESSING)


def test_verify_takes_them_with_a_checkpoint_alone(command):
    for flags in (
        ["--entry", "ema"],
        ["--color", "rgb"],
        ["--class-names", "a", "--crop-ratio", 1],
    ):
        for name in ("verify", "export"):
            status, _, err = command(name, "--arch", "RepVGGA0", *flags)
            assert status == 2 and "give a checkpoint by --model, or leave --" in err
            assert all(flag in err for flag in flags[::2])


def test_a_command_asks_for_the_colour_order_and_reports_it(command, state_dict, tmp_path):
    data = write_image_folder(tmp_path / "data", val=3, train=1)
    run = ["test", "--model", state_dict, "--data", data, "--size", "32", "--workers", "0"]
    status, _, err = command(*run)
    assert status == 2 and "give --color rgb or --color bgr" in err
    status, out, err = command(*run, "--color", "bgr", "--mean", "0.5", "0.5", "0.25")
    assert status == 0, err
    assert "colour order: BGR (--color)\nmean: 127.5 127.5 63.75 (--mean)\n" in out
    assert "resize backend: opencv (assumed: as is usual with MegEngine)" in out


def test_prediction_uses_them_and_the_class_names(command, state_dict, tmp_path):
    red = np.zeros((40, 40, 3), np.uint8)
    red[..., 2] = 200
    assert cv2.imwrite(str(tmp_path / "red.png"), red)
    (tmp_path / "names.txt").write_text("apple\npear\nplum\n")
    run = ["predict", tmp_path / "red.png", "--model", state_dict, "--json", "--top", "3"]
    seen = {}
    for color in ("rgb", "bgr"):
        status, out, err = command(*run, "--color", color, "--class-names", tmp_path / "names.txt")
        assert status == 0, err
        assert f"colour order: {color.upper()} (--color)" in err
        best = json.loads(out)["images"][0]["predictions"]
        assert {row["name"] for row in best} == {"apple", "pear", "plum"}
        seen[color] = [row["probability"] for row in best]
    assert seen["rgb"] != seen["bgr"]


def test_export_writes_what_they_say_into_the_file(command, state_dict, tmp_path):
    run = ["export", "--model", state_dict, "--size", "32", "--out", tmp_path / "a.onnx", "--json"]
    status, out, err = command(*run, "--color", "rgb", "--resize-backend", "pillow")
    assert status == 0, err
    takes = json.loads(out)["takes"]
    assert (takes["color"], takes["resize_backend"]) == ("RGB", "pillow")


def test_training_from_them_reports_and_keeps_them(command, state_dict, tmp_path):
    data = write_image_folder(tmp_path / "data", val=3, train=4)
    run = ["train", "--data", data, "--pretrained", state_dict, "--size", "32", "--epochs", "1",
           "--batch-size", "4", "--workers", "0", "--save", tmp_path / "runs", "--tag", "a",
           "--color", "rgb", "--std", "0.25", "0.25", "0.25"]  # fmt: skip
    status, out, err = command(*run)
    assert status == 0, err
    assert "colour order: RGB (--color)" in out and "std: 63.75 63.75 63.75 (--std)" in out
    kept = checkpoint.read(tmp_path / "runs" / "RepVGGA0" / "a" / "best.pkl").preprocessing
    assert (kept.color, kept.std, kept.size) == ("RGB", (63.75,) * 3, 32)


def test_new_networks_are_trained_with_pillows_resizing(small_repvgg_a0):
    for backend, flags in (("pillow", []), ("opencv", ["--resize-backend", "opencv"])):
        args = options.parse("", ["--data", "flowers", "--mean", "0", "0", "0", *flags])
        begin = starting_point.of_flags(args, 3, None).preprocessing
        assert (begin.resize_backend, begin.mean) == (backend, (0, 0, 0))


def test_class_names_of_a_kept_classifier_must_be_those_of_the_data(command, state_dict, tmp_path):
    data = write_image_folder(tmp_path / "data", val=3, train=4)
    (tmp_path / "names.txt").write_text("pear\napple\nplum\n")
    run = ["train", "--data", data, "--pretrained", state_dict, "--size", "32", "--color", "rgb",
           "--workers", "0", "--save", tmp_path / "runs"]  # fmt: skip
    status, _, err = command(*run, "--class-names", tmp_path / "names.txt")
    assert status == 2 and "--class-names has 'pear' where the data has the class 'apple'" in err
