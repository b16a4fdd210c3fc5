"""export.py: reports, files and errors."""

import json
import os
import pickle
import shutil
from dataclasses import asdict

import models
from models import equivalence

import cv2
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
    assert status == 0 and (tmp_path / "RepVGGA0-train.onnx").is_file()
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
        (("--batch", "some"), "'some' is not a whole number of at least 1 and at most 1024, nor"),
        (("--batch", 10_000), "'10000' is not a whole number of at least 1 and at most 1024, nor"),
        (("--size", "32x"), "'32x' is neither PIXELS nor HEIGHTxWIDTH"),
        (("--size", 4097), "'4097' is neither PIXELS nor HEIGHTxWIDTH of at most 4096, nor"),
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
        (("--features", "--input-name", "stage2"), "stage2 is the name of an output"),
        (("--out", "a.txt"), "--out a.txt does not end in .onnx"),
        (("--out", "/dev/null/a.onnx"), "cannot save /dev/null/a.onnx: /dev/null is no folder"),
    ],
)  # fmt: skip
def test_errors_are_one_sentence(command, best, tmp_path, monkeypatch, options, sentence):
    monkeypatch.chdir(tmp_path)
    shutil.copy(best, "best.pkl")
    model = () if "--model" in options or not options else ("--model", "best.pkl")
    status, out, err = command("export", *model, *options)
    assert (status, out) == (2, "")
    assert sentence in err and len(err.splitlines()) == 1
    assert list(tmp_path.iterdir()) == [tmp_path / "best.pkl"]


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
    found.state_dict["linear.weight"][...] = 3e38
    path = tmp_path / "best.pkl"
    checkpoint.save(found, path)
    status, _, err = command("export", "--model", path)
    assert status == 2 and len(err.splitlines()) == 1
    assert "the network computes numbers that are not finite" in err
    assert list(tmp_path.iterdir()) == [path]


def test_a_network_that_computes_nothing_but_zeros(command, best, tmp_path):
    """An untrained classifier may be so, and the file then is too."""
    found = checkpoint.read(best)
    for name in ("linear.weight", "linear.bias"):
        found.state_dict[name][...] = 0
    checkpoint.save(found, tmp_path / "best.pkl")
    status, out, err = command("export", "--model", tmp_path / "best.pkl")
    assert (status, err) == (0, "") and "relative error 0.0e+00 under" in out


def test_what_is_exported_differently_has_another_name(command, best, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(best, "a.b.pkl")
    for flags in ([], ["--half"], ["--features"], ["--features", "--format", "mge"]):
        assert command("export", "--model", "a.b.pkl", *flags)[0] == 0
    assert command("export", "--arch", "RepVGGA0", "--keep-branches", "--size", 32)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "RepVGGA0-train.onnx", "a.b-features.mge", "a.b-features.onnx", "a.b-half.onnx",
        "a.b.onnx", "a.b.pkl",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["net.onnx", "net.mge"])
def test_the_checkpoint_itself_is_never_replaced(command, best, tmp_path, name):
    path = tmp_path / name
    shutil.copy(best, path)
    for flags in ([], ["--out", tmp_path / "link.onnx", "--format", "onnx"]):
        (tmp_path / "link.onnx").unlink(missing_ok=True)
        (tmp_path / "link.onnx").hardlink_to(path)
        status, _, err = command("export", "--model", path, "--format", path.suffix[1:], *flags)
        assert status == 2 and "is the file to read; give another name by --out" in err
    assert path.read_bytes() == best.read_bytes()


def test_names_that_are_not_in_utf_8(command, best, tmp_path, rng):
    """Names of files are bytes; a terminal in another encoding writes such ones."""
    folder = os.fsencode(tmp_path)
    model, target = (os.fsdecode(folder + name) for name in (b"/caf\xe9.pkl", b"/d\xe9j\xe0.onnx"))
    shutil.copy(best, model)
    status, out, err = command("export", "--model", model, "--out", target)
    assert (status, err) == (0, "") and "d\\xe9j\\xe0.onnx" in out
    cv2.imwrite(str(tmp_path / "a.png"), rng.integers(0, 256, (40, 40, 3), np.uint8))
    status, out, err = command("predict", tmp_path / "a.png", "--model", target, "--top", 1)
    assert (status, err) == (0, "") and len(out.splitlines()) == 2


def test_a_size_that_is_given_is_not_said_to_be_assumed(command, best, tmp_path):
    found = checkpoint.read(best)
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps({"state_dict": found.state_dict}))
    flags = ["--model", tmp_path / "bare.pkl", "--arch", "RepVGGA0", "--color", "rgb"]
    status, out, err = command("export", *flags, "--size", 64)
    assert status == 0, err
    assert "size: 64 (--size)" in out and "[batch, 3, 64, 64]" in out
