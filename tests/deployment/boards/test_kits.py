"""export.py --kit: from the command line to a folder, and what it refuses."""

import contextlib
import json
import os

import models

import megengine as mge
import onnx
import pytest

from data.transforms import Preprocessing
from deployment.boards import kit
from tests.support import write_image_folder
from weights import checkpoint


@pytest.fixture
def trained(small_repvgg_a0, tmp_path):
    """A checkpoint in train form, of a RepVGGA0 with few blocks and channels."""
    mge.random.seed(0)
    model = models.create("RepVGGA0", 2)
    path = tmp_path / "best.pkl"
    checkpoint.save(checkpoint.of_model(model, Preprocessing(size=32), ["apple", "pear"]), path)
    return path


@pytest.fixture
def photos(tmp_path):
    return write_image_folder(tmp_path / "photos", ("pear", "apple"), train=2, val=3)


def test_the_kits(command, trained, photos, tmp_path):
    out = tmp_path / "rdk"
    flags = ["--model", trained, "--kit", "rdk-x5", "--calibration", photos, "--images", 4]
    status, said, err = command("export", *flags, "--out", out, "--json")
    said = json.loads(said)
    assert status == 0 and err.startswith("warning: 4 calibration images are few, ")
    assert sorted(said["files"]) == sorted(path.name for path in out.iterdir())
    assert len(list((out / "calibration_data_rgb_f32").iterdir())) == 4
    network = onnx.load(out / "RepVGG-A0.onnx")
    assert {node.op_type for node in network.graph.node} & {"BatchNormalization"} == set()
    noted = {entry.key: entry.value for entry in network.metadata_props}
    assert noted["source_sha256"] == said["source_sha256"] and noted["form"] == "deploy"

    out = tmp_path / "ascend"
    flags = ["--model", trained, "--kit", "ascend", "--data", photos]
    status, said, err = command("export", *flags, "--out", out, "--size", 64)
    assert (status, err) == (0, "") and str(out / "README.txt") in said
    labels = [line.split(" ")[1] for line in (out / "val_label.txt").read_text().splitlines()]
    assert labels == ["0"] * 3 + ["1"] * 3
    assert {file.stat().st_size for file in (out / "prep_dataset").iterdir()} == {3 * 64 * 64 * 4}


def test_rockchips_kit(command, trained, photos, tmp_path):
    out = tmp_path / "rknn"
    flags = ["--model", trained, "--kit", "rknn", "--calibration", photos / "train"]
    status, said, err = command("export", *flags, "--data", photos, "--out", out, "--json")
    said = json.loads(said)
    assert status == 0 and err.startswith("warning: 4 calibration images are few, ")
    assert sorted(said["files"]) == sorted(path.name for path in out.iterdir())
    assert len(list((out / "calibration").iterdir())) == 4
    assert len(list((out / "evaluation").iterdir())) == 6
    about = json.loads((out / "network.json").read_text())
    assert about["classes"] == ["apple", "pear"] and about["model"] == "RepVGGA0.rknn"


@pytest.mark.parametrize(
    "kit, flags, compiled",
    [("ascend", ["--data"], "_bs1.om"), ("rknn", ["--calibration"], ".rknn")],
)
def test_names_say_another_total_stride(
    command, small_repvgg_a0, photos, tmp_path, kit, flags, compiled
):
    model, path, out = models.create("RepVGGA0", 2, stride=8), tmp_path / "a.pkl", tmp_path / kit
    checkpoint.save(checkpoint.of_model(model, Preprocessing(size=32), ["apple", "pear"]), path)
    status, _, err = command("export", "--model", path, "--kit", kit, *flags, photos, "--out", out)
    assert status == 0, err
    about = json.loads((out / "network.json").read_text())
    assert (about["name"], about["model"]) == ("RepVGGA0-stride8", f"RepVGGA0-stride8{compiled}")
    named = [path.name for path in out.iterdir() if path.name.startswith("RepVGGA0")]
    assert named and all(name.startswith("RepVGGA0-stride8") for name in named)
    readme = (out / "README.txt").read_text()
    assert "RepVGGA0-stride8.onnx" in readme or "RepVGGA0-stride8-int8.onnx" in readme
    assert "RepVGGA0." not in readme


def test_what_a_kit_refuses(command, trained, photos, tmp_path):
    (tmp_path / "empty").mkdir()
    rdk = ["--kit", "rdk-x5", "--calibration", photos]
    for flags, message in (
        (["--kit", "tpu"], "'tpu' (choose from 'rdk-x5', 'rdk-x3', 'ascend', 'rknn')"),
        (["--kit", "rknn"], "--kit rknn needs --calibration"),
        ([*rdk, "--int16", 0], "'0' is not a whole number of at least 1"),
        (["--kit", "rdk-x3", "--calibration", photos, "--int16", 2], "--int16 is for --kit rdk-x5"),
        (["--kit", "rdk-x5"], "--kit rdk-x5 needs --calibration"),
        (["--kit", "ascend"], "--kit ascend needs --data"),
        (["--kit", "ascend", "--data", photos, "--images", 3], "--images is for --kit rdk-x5"),
        ([*rdk, "--labels", "x"], "--labels is for --kit ascend"),
        (["--calibration", photos], "--calibration is for --kit rdk-x5"),
        ([*rdk, "--opset", 17], "the board decides about --opset"),
        ([*rdk, "--format", "mge"], "the board decides about --format"),
        ([*rdk, "--bgr-input"], "the board decides about --rgb-input or --bgr-input"),
        ([*rdk, "--size", "32x64"], "a kit is for square images"),
        ([*rdk, "--images", 0], "'0' is not a whole number of at least 1"),
        (["--kit", "rdk-x5", "--calibration", tmp_path / "empty"], "64 suffice"),
        (["--kit", "ascend", "--data", tmp_path / "empty"], "has no val/ or test/"),
        ([*rdk, "--out", trained / "kit"], "Not a directory"),
        ([*rdk, "--out", photos], "exists already and is not empty"),
    ):
        before = sorted(tmp_path.rglob("*"))
        status, out, err = command("export", "--model", trained, "--out", tmp_path / "kit", *flags)
        assert (status, out, err.count("\n")) == (2, "", 1) and message in err, err
        assert sorted(tmp_path.rglob("*")) == before
    status, _, err = command("export", "--model", trained, *rdk)
    assert status == 2 and "--kit rdk-x5 needs --out" in err


@pytest.mark.parametrize("fails", [False, True])
def test_an_empty_folder_stays_the_same_one(tmp_path, monkeypatch, fails):
    """It may be the working directory, or a mount point, which cannot be replaced."""
    (tmp_path / "kit").mkdir()
    monkeypatch.chdir(tmp_path / "kit")
    before = os.stat(".").st_ino
    with contextlib.suppress(ZeroDivisionError), kit.new_folder(".") as folder:
        (folder / "images").mkdir()
        (folder / "README.txt").write_text("text")
        1 / (not fails)
    assert os.stat(tmp_path / "kit").st_ino == before
    assert sorted(os.listdir(".")) == ([] if fails else ["README.txt", "images"])
    assert os.listdir(tmp_path) == ["kit"]
