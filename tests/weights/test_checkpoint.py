"""Checkpoints: complete or not there, and refused with a sentence when they are something else."""

import pickle
import resource
import subprocess
import sys

import models

import megengine.module as M
import numpy as np
import pytest

import utils
import weights
from data.transforms import BASECLS, Preprocessing
from tests.support import ROOT
from utils import UserError
from weights import checkpoint
from weights.checkpoint import CheckpointError
from weights.recognition import ConversionError


@pytest.fixture(scope="module")
def network():
    return models.create("RepVGGA0", num_classes=7)


@pytest.fixture
def saved(network, tmp_path):
    """Files of the same network in both forms."""
    paths = {}
    for form, model in (("train", network), ("deploy", models.to_deploy(network))):
        paths[form] = tmp_path / f"{form}.pkl"
        contents = checkpoint.of_model(model, Preprocessing(size=64), list("abcdefg"))
        checkpoint.save(contents, paths[form])
    return paths


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def test_a_checkpoint_says_what_it_is(saved):
    for form, path in saved.items():
        found = checkpoint.read(path)
        assert (found.arch, found.form, found.num_classes) == ("RepVGGA0", form, 7)
        assert found.preprocessing == Preprocessing(size=64)
        assert found.classes == list("abcdefg")


@pytest.mark.parametrize(
    "arch, given, options",
    [
        (
            "RepGhost050",
            {"stride": np.int64(8), "in_chans": np.int8(1)},
            {"in_chans": 1, "stride": 8},
        ),
        ("RepViTM0_6", {"heads": True, "legacy": 1}, {"heads": 1, "legacy": True}),
    ],
)
def test_what_create_takes_can_be_read_back(tmp_path, arch, given, options):
    """Equal values of other types too, as from NumPy."""
    model = models.create(arch, np.int64(3), **given)
    assert type(model.num_classes) is int
    checkpoint.save(checkpoint.of_model(model, Preprocessing(size=32)), tmp_path / "a.pkl")
    found = checkpoint.read(tmp_path / "a.pkl")
    assert found.options == options and found.num_classes == 3
    assert [type(value) for value in found.options.values()] == list(map(type, options.values()))
    assert same_weights(weights.load(found), model)


def test_what_read_would_refuse_is_not_made_a_checkpoint():
    model = models.create("RepGhost050", 3)
    model.linear = M.Linear(1280, 5)
    with pytest.raises(ValueError, match="could not be .* says 3 classes, its classifier 5"):
        checkpoint.of_model(model, Preprocessing())
    model.num_classes = 5
    assert checkpoint.of_model(model, Preprocessing()).num_classes == 5


@pytest.mark.parametrize("classes", [["cat", "dog"], "abcdefghij"])
def test_there_is_a_name_for_each_class(classes):
    model = models.create("RepVGGA0", 10)
    with pytest.raises(ValueError, match="names of classes, and 10 classes"):
        checkpoint.of_model(model, Preprocessing(), classes)


def test_pretrained_takes_either_form(network, saved):
    same = weights.load(saved["train"], "RepVGGA0", 7)
    assert same_weights(same, network) and same.arch == "RepVGGA0" and same.num_classes == 7
    for path in saved.values():
        fused = weights.load(path, "RepVGGA0", 7, deploy=True)
        assert same_weights(fused, models.to_deploy(network))


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_weights_of_another_precision_are_read_as_float32(network, saved, dtype):
    path = saved["train"]
    contents = pickle.loads(path.read_bytes())
    state = {name: value.astype(dtype) for name, value in contents["state_dict"].items()}
    path.write_bytes(pickle.dumps({**contents, "state_dict": state}))
    read = checkpoint.read(path)
    assert {value.dtype for value in read.state_dict.values()} == {np.dtype(np.float32)}
    model = weights.load(path, deploy=True)
    assert {parameter.dtype for parameter in model.parameters()} == {np.dtype(np.float32)}


def test_the_wrong_checkpoint_is_a_sentence(saved):
    with pytest.raises(CheckpointError, match="of RepVGGA0, but RepVGGA1 was expected; use --arch"):
        weights.load(saved["train"], "RepVGGA1", 7)
    with pytest.raises(CheckpointError, match="has 7 classes, but 1000 were expected"):
        weights.load(saved["train"], "RepVGGA0", 1000)
    with pytest.raises(CheckpointError, match="is in deploy form, but the train form was expected"):
        weights.load(saved["deploy"], "RepVGGA0", 7, deploy=False)


def test_create_reads_no_file():
    with pytest.raises(ValueError, match=r"use weights\.load\('a\.pkl', 'RepVGGA0'\)$"):
        models.create("repvgg_a0", pretrained="a.pkl")


@pytest.mark.slow  # RepVGGs are built to see that it is none of them
def test_a_plain_state_dict_is_read(network, tmp_path):
    """As the older MegEngine repositories saved it: arrays alone, some with 4-D batch norms."""
    for form, model in (("train", network), ("deploy", models.to_deploy(network))):
        state = {key: np.array(value) for key, value in model.state_dict().items()}
        for key, value in state.items():
            if ".bn." in key:
                state[key] = value.reshape(1, -1, 1, 1)
        path = tmp_path / "plain.pkl"
        path.write_bytes(pickle.dumps(state))
        with pytest.raises(UserError, match="give --color rgb or --color bgr"):
            checkpoint.read(path)  # a network of this project may be saved so too
        found = checkpoint.read(path, source="port")
        assert (found.arch, found.form, found.num_classes) == ("RepVGGA0", form, 7)
        assert found.preprocessing == BASECLS
        assert same_weights(weights.load(path), model)
        with pytest.raises(ConversionError, match="holds RepVGGA0, but RepVGGB0 was asked for"):
            weights.load(path, "RepVGGB0")
        del state["linear.bias"]
        path.write_bytes(pickle.dumps(state))
        with pytest.raises(ConversionError, match=r"linear\.bias is missing"):
            weights.load(path, "RepVGGA0")


OURS = {"arch": "RepVGGA0", "form": "train", "preprocessing": {}}
WEIGHTS = {"linear.weight": np.zeros((7, 1280), np.float32)}
MANY = {"linear.weight": np.zeros((10**6 + 1, 1), np.float16)}
COMPLETE = {**OURS, "num_classes": 7, "classes": None, "state_dict": WEIGHTS}


@pytest.mark.parametrize(
    "content, sentence",
    [
        ([1, 2], "holds no tensors"),
        ({"a": 1}, "holds no tensors"),
        (OURS, "is not a checkpoint of this version of the project"),
        ({**OURS, "preprocessing": {"flavour": 1}}, "is not a checkpoint of this version"),
        (COMPLETE, "does not fit RepVGGA0 with 7 classes"),
        ({**COMPLETE, "arch": "RepVGGZ9"}, "its architecture is 'RepVGGZ9'"),
        ({**COMPLETE, "arch": [1]}, r"its architecture is \[1\]"),
        ({**COMPLETE, "form": "x"}, "its form is 'x'"),
        ({**COMPLETE, "num_classes": 10**12}, "1000000000000 classes, its classifier 7"),
        ({**COMPLETE, "source": "another repository"}, "is not a checkpoint of this version"),
        ({**COMPLETE, "state_dict": 5}, "is not a checkpoint of this version"),
        ({**COMPLETE, "state_dict": {"a": "b"}}, "is not a checkpoint of this version"),
        ({**COMPLETE, "state_dict": {"a": np.array(["b"])}}, "a holds no floating-point numbers"),
        ({**COMPLETE, "num_classes": 7.0}, "says 7.0 classes, its classifier 7"),
        (
            {**COMPLETE, "num_classes": 10**6 + 1, "state_dict": MANY},
            "its classifier has 1000001 classes",
        ),
        ({**COMPLETE, "classes": 3}, "is not a checkpoint of this version"),
        ({**COMPLETE, "classes": [1, 2]}, "its names of the classes are no text"),
        ({**COMPLETE, "options": None}, "its options are None"),
        ({**COMPLETE, "options": ["stride"]}, r"its options are \['stride'\]"),
        ({**COMPLETE, "options": {"foo": 1}}, "its option foo is 1"),
        ({**COMPLETE, "options": {1: 1}}, "its option 1 is 1"),
        ({**COMPLETE, "options": {"in_chans": "3"}}, "its option in_chans is '3'"),
        ({**COMPLETE, "options": {"in_chans": 10**9}}, "its option in_chans is 1000000000"),
        ({**COMPLETE, "options": {"in_chans": 4}}, "says 4 input channels, its first kernel 3"),
        ({**COMPLETE, "options": {"stride": 7}}, "its option stride is 7"),
        ({**COMPLETE, "options": {"stride": "8"}}, "its option stride is '8'"),
        ({**COMPLETE, "options": {"stride": np.ones(2)}}, "its option stride is array"),
        ({**COMPLETE, "options": {"heads": 1}}, "its option heads is 1"),
        ({**COMPLETE, "activation_ranges": [1]}, "is not a checkpoint of this version"),
        ({**COMPLETE, "activation_ranges": {"a": (2, 1)}}, "its activation a ranges from 2 to 1"),
        ({**COMPLETE, "preprocessing": {"color": "CMY"}}, "makes no sense"),
        ({**COMPLETE, "preprocessing": {"size": -1}}, "makes no sense"),
        ({**COMPLETE, "preprocessing": {"std": (1, 1, 0)}}, "makes no sense"),
    ],
)
def test_other_contents_are_a_sentence(tmp_path, content, sentence):
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(UserError, match=sentence):
        weights.load(path)


def test_the_layout_of_a_checkpoint_of_this_project_need_not_be_said(tmp_path):
    model = models.create("RepVGGA0", 7, stride=8)
    path = tmp_path / "cifar.pkl"
    ranges = {"image": (-2.0, 2.0)}
    contents = checkpoint.of_model(model, Preprocessing(size=32), activation_ranges=ranges)
    checkpoint.save(contents, path)
    for source in (None, "own"):
        found = checkpoint.read(path, source=source)
        assert found.options == {"stride": 8} and found.activation_ranges == ranges
        assert found.preprocessing.size == 32
    with pytest.raises(CheckpointError, match="which says what it holds; leave the source 'port'"):
        checkpoint.read(path, source="port")


def test_a_failed_save_leaves_the_old_file(tmp_path):
    """A real failing write: the kernel refuses a file over the process's size limit."""
    path = tmp_path / "latest.pkl"
    utils.write_atomically(path, lambda file: file.write(b"old"))
    code = (
        "import utils; from weights import checkpoint\n"
        f"try: utils.write_atomically({str(path)!r}, lambda f: f.write(bytes(1_000_000)))\n"
        "except utils.UserError as error: print(error)"
    )
    limit = (100_000, 100_000)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limit),
    )
    assert "cannot save" in done.stdout and "the file that was there is untouched" in done.stdout
    assert path.read_bytes() == b"old"
    assert [file.name for file in tmp_path.iterdir()] == ["latest.pkl"]


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot save"):
        utils.write_atomically(tmp_path / "file" / "latest.pkl", lambda file: None)
    with pytest.raises(UserError, match="cannot save .*: File name too long"):
        utils.write_atomically(tmp_path / ("n" * 300), lambda file: None)


@pytest.mark.parametrize(
    "key, value",
    [("stage1.0.dense.bn.running_var", -0.5), ("stage1.0.dense.bn.weight", np.nan),
     ("linear.bias", np.inf)],
)  # fmt: skip
def test_weights_that_are_not_finite_are_refused_by_every_command(
    command, network, image_folder, tmp_path, key, value
):
    """MegEngine's ReLU turns NaN into 0, so that the logits may look well."""
    contents = checkpoint.of_model(network, Preprocessing(size=32), list("abcdefg"))
    contents.state_dict[key] = np.array(contents.state_dict[key])
    contents.state_dict[key].reshape(-1)[3] = value
    path = tmp_path / "bad.pkl"
    checkpoint.save(contents, path)
    data = image_folder(classes=tuple("abcdefg"), train=2, val=1)
    for name, *flags in (
        ("verify", "--model", path),
        ("predict", data / "val/a/0.jpg", "--model", path),
        ("test", "--data", data, "--model", path, "--switch-deploy", 1),
        ("export", "--model", path, "--out", tmp_path / "bad.onnx"),
        ("quantize", "--model", path, "--calibration", data / "train"),
        ("convert_pretrained_weight", "--origin-dir", path, "--save-dir", tmp_path / "new.pkl"),
        ("train", "--data", data, "--pretrained", path, "--save", tmp_path / "runs"),
    ):
        status, _, err = command(name, *flags)
        last = err.splitlines()[-1]
        assert status == 2 and f"{key} holds numbers that are not finite" in last, (name, err)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.pkl", "photos"]
