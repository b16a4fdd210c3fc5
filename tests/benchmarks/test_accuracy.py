"""test.py on exported files: the same images, counted as for the checkpoint."""

import json

import models
from models import equivalence

import numpy as np
import onnx
import pytest

from benchmarks import record
from data.transforms import Preprocessing
from tests.support import write_image_folder
from weights import checkpoint

CLASSES = ["plum", "apple", "pear"]  # not in the order of the folders


@pytest.fixture
def saved(small_repvgg_a0, tmp_path):
    model = models.create("RepVGGA0", 3)
    noise = np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)
    equivalence.randomize(model, noise)
    path = tmp_path / "best.pkl"
    preprocessing = Preprocessing("BGR", size=32, crop_ratio=0.8)
    checkpoint.save(checkpoint.of_model(model, preprocessing, CLASSES), path)
    return path


@pytest.mark.slow
def test_files_are_scored_as_the_checkpoint(command, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path / "results")
    data = write_image_folder(tmp_path / "photos", train=1, val=9, side=50)
    common = ["--data", data, "--workers", 0, "--val-batch-size", 4, "--json"]
    status, out, err = command("test", "--model", saved, *common)
    assert (status, err) == (0, "")
    (expected,) = json.loads(out)["results"]
    assert expected["total"] == 27 and 0 < expected["correct1"] < 27
    files = {
        "any.onnx": [],
        "eight.onnx": ["--batch", 8],
        "raw.onnx": ["--fold-normalization", "--rgb-input", "--size", "dynamic"],
        "a.mge": ["--format", "mge"],
    }
    for name, flags in files.items():
        path = tmp_path / name
        assert command("export", "--model", saved, "--out", path, *flags)[0] == 0
        status, out, err = command("test", "--model", path, *common)
        assert (status, err) == (0, "")
        said = json.loads(out)
        assert said["arch"] == "RepVGGA0" and said["model"] == str(path)
        assert said["results"] == [{**expected, "form": "deploy"}], name

    calibration = ["--calibration", data, "--out", tmp_path / "int8.onnx", "--clip", "minmax"]
    assert command("quantize", "--model", tmp_path / "any.onnx", *calibration)[0] == 0
    flags = ["--model", tmp_path / "int8.onnx", *common, "--record", "int8", "--crop-ratio", 1]
    status, out, err = command("test", *flags)
    assert (status, err) == (0, "")
    (row,) = json.loads(out)["results"]
    assert row["form"] == "int8" and row["total"] == 27
    assert json.loads((tmp_path / "results" / "int8.json").read_text())["figures"] == [row]

    status, out, _ = command("test", "--model", tmp_path / "any.onnx", *common[:-1])
    assert out.splitlines()[-1].startswith("RepVGGA0, deploy form: top-1 ")


def test_a_file_from_elsewhere_with_flags(command, saved, tmp_path):
    path, names = tmp_path / "foreign.onnx", tmp_path / "names.json"
    assert command("export", "--model", saved, "--out", path)[0] == 0
    data = ["--data", write_image_folder(tmp_path / "photos", train=1), "--workers", 0, "--json"]
    _, expected, _ = command("test", "--model", path, *data)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    onnx.save(proto, path)
    status, _, err = command("test", "--model", path, *data)
    assert status == 2 and "give --mean, --std, --color and --class-names" in err
    names.write_text(json.dumps(CLASSES))
    flags = ["--color", "bgr", "--class-names", names, "--crop-ratio", 0.8,
             "--resize-backend", "opencv",
             "--mean", 123.675, 116.28, 103.53, "--std", 58.395, 57.12, 57.375]  # fmt: skip
    status, out, err = command("test", "--model", path, *data, *flags)
    assert (status, err) == (0, "")
    assert json.loads(out)["results"] == json.loads(expected)["results"]
    status, out, err = command("test", "--model", saved, *data, "--color", "bgr")
    assert (status, err) == (0, "") and json.loads(out)["origins"]["color"] == "--color"


def test_what_a_file_is_not(command, saved, tmp_path):
    path, wide = tmp_path / "a.onnx", tmp_path / "wide.onnx"
    assert command("export", "--model", saved, "--out", path)[0] == 0
    assert command("export", "--model", saved, "--out", wide, "--size", "32x64")[0] == 0
    for flags, sentence in (
        (["--model", path, "--switch-deploy", 1], "is an exported network, not a checkpoint"),
        (["--model", path, "--deploy", 0], "is an exported network, not a checkpoint"),
        (["--model", path, "--size", 64], "takes images of 32 x 32 only; leave out --size"),
        (["--model", path, "--arch", "RepVGGA1"], "is of RepVGGA0, but RepVGGA1 was expected"),
        (["--model", wide], "takes images of 32 x 64, and accuracy is measured on squares"),
        (["--model", tmp_path / "none.onnx"], "there is no file"),
        (["--seed", 3], "--seed needs --holdout"),
        (["--report", path], "a.onnx is no folder; give another name"),
    ):
        status, out, err = command("test", *flags)
        assert (status, out, err.count("\n")) == (2, "", 1) and sentence in err


def test_the_deploy_form_never_replaces_the_file_that_is_read(command, saved, tmp_path):
    data = write_image_folder(tmp_path / "photos", train=1)
    path = saved.with_name("mine-deploy.pkl")
    path.write_bytes(saved.read_bytes())
    flags = ["--model", path, "--data", data, "--switch-deploy", 1]
    status, _, err = command("test", *flags)
    assert status == 2 and "has the name by which --switch-deploy saves" in err
    assert path.read_bytes() == saved.read_bytes()
    saved.with_name(f"{saved.stem}-deploy.pkl").mkdir()
    status, _, err = command("test", "--model", saved, *flags[2:])
    assert status == 2 and "it is no regular file; copy the checkpoint to another folder" in err


def test_a_wrong_deploy_form_is_not_saved(command, saved, tmp_path, monkeypatch):
    data = write_image_folder(tmp_path / "photos", train=1)
    fuse = models.to_deploy

    def broken(model):
        deployed = fuse(model)
        bias = next(p for name, p in deployed.named_parameters() if name.endswith("reparam.bias"))
        bias[0] = bias[0] + 0.5
        return deployed

    monkeypatch.setattr(models, "to_deploy", broken)
    monkeypatch.setattr(equivalence, "to_deploy", broken)
    status, _, err = command("test", "--model", saved, "--data", data, "--switch-deploy", 1)
    assert status == 2 and "was not saved: fusing" in err
    assert not list(saved.parent.glob("*-deploy.pkl"))
