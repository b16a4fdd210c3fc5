"""export.py: reports, files and errors."""

import json
from dataclasses import asdict

import models
from models import equivalence

import megengine as mge
import numpy as np
import onnxruntime
import pytest

import weights
from data.transforms import Preprocessing
from deployment.mge_runtime import MgeFile
from weights import checkpoint, files

CLASSES = [f"class {i}" for i in range(10)]


@pytest.fixture(scope="module")
def best(tmp_path_factory):
    """A train-form checkpoint with random weights."""
    model = models.create("RepVGGA0", 10)
    equivalence.randomize(
        model, np.random.default_rng(0).standard_normal((8, 3, 64, 64), np.float32)
    )
    path = tmp_path_factory.mktemp("run") / "best.pkl"
    checkpoint.save(checkpoint.of_model(model, Preprocessing(size=32), CLASSES), path)
    return path


def logits(path, pictures):
    """The live network's, in deploy form, for uint8 BGR pictures."""
    found = checkpoint.read(path)
    model = weights.load(found, deploy=True)
    model.eval()
    images = np.stack([found.preprocessing.normalize(picture) for picture in pictures])
    return model(mge.Tensor(images)).numpy()


@pytest.fixture
def pictures(rng):
    return rng.integers(0, 256, (2, 32, 32, 3), np.uint8)


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_the_report(command, best):
    status, out, err = command("export", "--model", best)
    path = best.with_suffix(".onnx")
    assert (status, err) == (0, "")
    assert "architecture: RepVGGA0, deploy form, 10 classes\n" in out
    assert "input:        input [batch, 3, 32, 32], RGB, normalized\n" in out
    assert "7,041,194 in 46 initializers; the network's: 7,041,194\n" in out
    assert "22 Conv, 22 Relu, 1 GlobalAveragePool, 1 Flatten, 1 Gemm (opset 17)\n" in out
    assert "under onnxruntime\n" in out and f"file:         {path}, 28.2 MB\n" in out
    assert out.endswith(f"sha256:       {files.sha256(path)}\n")
    said = onnxruntime.InferenceSession(str(path)).get_modelmeta().custom_metadata_map
    assert said["source_sha256"] == files.sha256(best) and said["source"] == "best.pkl"
    assert (said["arch"], said["form"]) == ("RepVGGA0", "deploy")
    assert json.loads(said["classes"]) == CLASSES
    assert json.loads(said["preprocessing"]) == json.loads(
        json.dumps(asdict(Preprocessing(size=32)))
    )


def test_raw_pixels_of_opencv(command, best, tmp_path, pictures):
    """A static network of opset 11 with names of its own, into a folder."""
    status, out, _ = command(
        "export", "--model", best, "--out", tmp_path, "--json", "--fold-normalization",
        "--bgr-input", "--opset", 11, "--batch", 2, "--input-name", "data",
        "--output-name", "output",
    )  # fmt: skip
    report = json.loads(out)
    assert status == 0 and report["file"] == str(tmp_path / "RepVGGA0.onnx")
    assert report["input"] == ["data", [2, 3, 32, 32]] and report["output"] == ["output", [2, 10]]
    assert report["parameters"] == report["network_parameters"] == 7_041_194
    assert report["operators"] == {
        "Add": 1, "Conv": 22, "Relu": 22, "GlobalAveragePool": 1, "Flatten": 1, "Gemm": 1
    }  # fmt: skip
    session = onnxruntime.InferenceSession(report["file"])
    pixels = pictures.transpose(0, 3, 1, 2).astype(np.float32)
    assert_close(session.run(["output"], {"data": pixels})[0], logits(best, pictures))


def test_mge(command, best, tmp_path, pictures):
    path = tmp_path / "new" / "a.mge"
    options = ("--format", "mge", "--size", "32x64", "--fold-normalization")
    status, out, _ = command("export", "--model", best, *options, "--out", path)
    assert status == 0 and "layout:       nchw\n" in out
    assert "input [batch, 3, 32, 64], RGB, pixels of 0 to 255\n" in out
    file = MgeFile(path)
    assert file.metadata["source_sha256"] == files.sha256(best)
    pixels = pictures[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
    assert_close(file(pixels), logits(best, pictures))


def test_random_weights_with_their_branches(command, tmp_path):
    status, out, _ = command(
        "export", "--arch", "repvgg_a0", "--keep-branches", "--size", 32, "--out", tmp_path
    )
    assert status == 0 and (tmp_path / "RepVGGA0.onnx").is_file()
    assert "architecture: RepVGGA0, train form, 1000 classes\n" in out
    assert "61 BatchNormalization" in out
    assert out.splitlines()[-1].startswith("note:         these weights are random")


@pytest.mark.parametrize(
    "options, sentence",
    [
        ((), "give a checkpoint by --model, or --arch alone for random weights"),
        (("--arch", "RepVGGA9"), "unknown architecture 'RepVGGA9'"),
        (("--opset", 10), "--opset: '10' is not a whole number of at least 11 and at most 17"),
        (("--opset", 18), "--opset: '18' is not"),
        (("--batch", "some"), "'some' is not a whole number of at least 1, nor 'dynamic'"),
        (("--size", "32x"), "'32x' is neither PIXELS nor HEIGHTxWIDTH"),
        (("--size", 0), "'0' is neither"),
        (("--format", "tflite"), "invalid choice: 'tflite'"),
        (("--keep-branches", "--fold-normalization"), "--keep-branches leaves several"),
        (("--keep-branches", "--rgb-input"), "--keep-branches leaves several"),
        (("--rgb-input", "--bgr-input"), "not allowed with"),
        (("--format", "mge", "--opset", 17), "--opset and --batch are for ONNX"),
        (("--layout", "nchw88"), "--layout is for --format mge"),
        (("--input-name", "a", "--output-name", "a"), "must be two different names"),
        (("--input-name", "linear.weight"), "'linear.weight' is the name of something"),
        (("--model", "nowhere.pkl"), "cannot read nowhere.pkl: No such file"),
        (("--arch", "RepVGGA1"), "RepVGGA1"),
        (("--out", "a.txt"), "--out a.txt does not end in .onnx"),
        (("--out", "/dev/null/a.onnx"), "cannot save /dev/null/a.onnx: /dev/null is no folder"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(command, best, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    model = () if "--model" in options or not options else ("--model", best)
    status, out, err = command("export", *model, *options)
    assert (status, out) == (2, "")
    assert sentence in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_fused_file_has_no_branches(command, best, tmp_path):
    found = checkpoint.read(best)
    deployed = weights.load(found, deploy=True)
    path = tmp_path / "best-deploy.pkl"
    checkpoint.save(checkpoint.of_model(deployed, found.preprocessing, CLASSES), path)
    status, _, err = command("export", "--model", path, "--keep-branches")
    assert status == 2 and "leave out --keep-branches" in err
    assert list(tmp_path.iterdir()) == [path]


def test_a_diverged_network_is_refused(command, best, tmp_path):
    found = checkpoint.read(best)
    found.state_dict["linear.bias"][3] = np.nan
    path = tmp_path / "best.pkl"
    checkpoint.save(found, path)
    status, _, err = command("export", "--model", path)
    assert status == 2 and "was not written" in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [path]
