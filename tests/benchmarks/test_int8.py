"""benchmark.py int8: what is compared, and what the rows say."""

import json

import models
from models import equivalence

import numpy as np
import pytest
from onnx import helper, numpy_helper

from benchmarks import int8
from benchmarks.inference import latency
from benchmarks.inference.turns import Settings
from data.transforms import Preprocessing
from deployment.int8.dialects import DIALECTS
from tests.support import write_image_folder
from training import qat
from training.distributed.process_group import Workers
from weights import checkpoint


def randomized(arch):
    """Return a network for 2 classes whose logits do not depend on how float32 is rounded."""
    model = models.create(arch, 2)
    equivalence.randomize(model, np.random.default_rng(0).standard_normal((8, 3, 32, 32)))
    return model


@pytest.fixture
def network(small_repvgg_a0):
    return randomized("RepVGGA0")


def save(model, path, ranges=None):
    classes = ["apple", "pear"]
    held = checkpoint.of_model(model, Preprocessing(size=32), classes, activation_ranges=ranges)
    checkpoint.save(held, path)
    return path


@pytest.mark.slow
def test_rows(network, command, tmp_path, monkeypatch):
    monkeypatch.setattr(int8, "find_spec", lambda package: package == "onnxruntime" or None)
    photos = write_image_folder(tmp_path / "photos", ("pear", "apple"), train=6, val=3)
    trained = qat.FakeQuantized(network)
    trained.calibrate([np.zeros((1, 3, 32, 32), np.float32)], Workers())
    flags = ["--model", save(network, tmp_path / "best.pkl"), "--images", 4]
    flags += ["--qat", save(network, tmp_path / "qat.pkl", dict(trained.ranges))]
    flags += ["--calibration", photos / "train", "--data", photos, "--target", "tensorrt"]
    flags += ["--rounds", 1, "--seconds", 0.01, "--json"]
    status, said, err = command("benchmark", "int8", *flags)
    assert status == 0 and err.startswith("warning: 4 calibration images are few, ")
    rows = {row["scheme"]: row for row in json.loads(said)}
    assert [*rows] == [
        "float",
        "per tensor, plain",
        "per channel, plain",
        "ours",
        "ours, full range",
        "ours, tensorrt",
        "trained by --qat",
    ]
    assert {row["arch"] for row in rows.values()} == {"RepVGGA0"}
    assert {row["calibration_images"] for row in rows.values()} == {4}
    assert all(row["top1"] in (0, *(100 * n / 6 for n in range(7))) for row in rows.values())
    assert rows["float"]["agreement"] == 100 and rows["float"]["sqnr"] is None
    assert rows["trained by --qat"]["sqnr"] is None and rows["ours"]["sqnr"] > 10
    timed = {name for name, row in rows.items() if row["onnxruntime"]}
    assert timed == {*int8.TIMED} and not any(row["openvino"] for row in rows.values())


@pytest.mark.slow
def test_a_network_of_qat_is_that_of_a_model(network, command, tmp_path):
    photos = write_image_folder(tmp_path / "photos", ("pear", "apple"), train=2, val=1)
    trained = qat.FakeQuantized(network)
    trained.calibrate([np.zeros((1, 3, 32, 32), np.float32)], Workers())
    path = save(network, tmp_path / "qat.pkl", dict(trained.ranges))
    other = save(randomized("RepGhost050"), tmp_path / "other.pkl")
    flags = ["--calibration", photos / "train", "--data", photos, "--images", 2]
    status, _, err = command("benchmark", "int8", "--model", other, "--qat", path, *flags)
    assert status == 2 and "is of RepVGGA0 for 2 classes, and no --model is; give one" in err
    own = save(network, tmp_path / "best.pkl")
    status, _, err = command("benchmark", "int8", "--model", own, "--qat", path, path, *flags)
    assert status == 2 and "and another --qat file is; give one of each" in err


def test_grey_networks_are_timed():
    weights = numpy_helper.from_array(np.ones((2, 1, 1, 1), np.float32), "w")
    ends = [
        helper.make_tensor_value_info(name, 1, ["batch", channels, 8, 8])
        for name, channels in (("input", 1), ("output", 2))
    ]
    node = helper.make_node("Conv", ["input", "w"], ["output"])
    graph = helper.make_graph([node], "grey", ends[:1], ends[1:], [weights])
    opset = helper.make_opsetid("", 17)
    model = helper.make_model(graph, opset_imports=[opset], ir_version=8)
    times = latency.of_files({"grey": model}, 8, settings=Settings(1, 0.001))
    assert times["grey", "onnxruntime"] > 0


def test_every_further_target_can_be_measured(command):
    _, said, _ = command("benchmark", "int8", "--help")
    assert all(target in said for target in DIALECTS if target != "onnxruntime")
