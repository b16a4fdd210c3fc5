"""Converting the first kernels to grey images and to four channels, and what follows from it."""

import json
from dataclasses import replace

import models
from models import equivalence, init

import cv2
import megengine as mge
import numpy as np
import pytest

import weights
from data.transforms import BASECLS, Preprocessing
from tests.support import slow_but, write_image_folder
from weights import channels, checkpoint, layouts, recognition, state

ARCHS = ["RepVGGA0", "RepGhost050", "RepViTM0_6"]
EXPECTS = Preprocessing("BGR", BASECLS.mean, BASECLS.std, 32)


def network(arch, classes=3):
    model = models.create(arch, classes)
    noise = np.random.default_rng(0).standard_normal((4, 3, 32, 32), np.float32)
    equivalence.randomize(model, noise)
    return model


def logits(model, images):
    model.eval()
    return model(mge.Tensor(images)).numpy()


def assert_close(a, b):
    assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.fixture
def saved(tmp_path, small_repvgg_a0):
    """A checkpoint in train form for colour images."""
    path = tmp_path / "best.pkl"
    names = ["apple", "pear", "plum"]
    checkpoint.save(checkpoint.of_model(network("RepVGGA0"), EXPECTS, names), path)
    return path


@pytest.mark.parametrize("deploy", slow_but([True], [False, True]))
@pytest.mark.parametrize("arch", ARCHS)
def test_the_converted_network_is_the_linear_one_that_timm_makes(arch, deploy, small_repvgg_a0):
    """Grey images are three equal colours; a fourth channel is added to the first."""
    model = network(arch)
    model = models.to_deploy(model) if deploy else model
    contents = checkpoint.of_model(model, EXPECTS)
    images = np.random.default_rng(1).standard_normal((2, 4, 32, 32), np.float32)

    grey, sentence = channels.with_input_channels(contents, 1)
    assert grey.options == {"in_chans": 1} and grey.preprocessing.channels == 1
    assert sentence.startswith("1 channel: st") and sentence.endswith("summed over the colours")
    expected = logits(model, np.repeat(images[:, :1], 3, axis=1))
    assert_close(logits(weights.load(grey), images[:, :1]), expected)

    trained = replace(contents, activation_ranges={"image": (-2.0, 2.0)})
    converted, with_ranges = channels.with_input_channels(trained, 1)
    assert "; the activation ranges of the" in with_ranges and with_ranges.endswith("are left out")
    assert converted.activation_ranges is None
    four, sentence = channels.with_input_channels(contents, 4)
    assert sentence.endswith("repeated and scaled by 3/4")
    colours = images[:, :3].copy()
    colours[:, 0] += images[:, 3]
    assert_close(logits(weights.load(four), images), logits(model, colours * np.float32(0.75)))
    assert channels.with_input_channels(four, 4) == (four, None)
    with pytest.raises(checkpoint.CheckpointError, match="takes images of 4 channels"):
        channels.with_input_channels(four, 1)
    assert weights.load(contents, in_chans=1).options == {"in_chans": 1}


@pytest.mark.parametrize("deploy", [False, True])
@pytest.mark.parametrize("arch", [*ARCHS, "RepVGGA0-qa", "MobileOneS0"])
def test_the_first_kernel_tells_the_channels(arch, deploy):
    with init.uninitialized():
        shapes = models.state_shapes(models.create(arch, 3, deploy=deploy, in_chans=4))
    tensors = {name: np.broadcast_to(np.float32(0), shape) for name, shape in shapes.items()}
    assert state.input_channels(tensors) == 4


def test_another_layout_tells_its_channels():
    model = models.create("RepGhost050", 3, in_chans=4)
    state_dict = checkpoint.of_model(model, EXPECTS).state_dict
    tensors = layouts.export(state_dict, "RepGhost050", "repghost")
    foreign = recognition.recognize(tensors, "a.pth", "RepGhost050")
    assert foreign.options == {"in_chans": 4}
    assert checkpoint.of_foreign(foreign, "a.pth").preprocessing.channels == 4


@pytest.mark.slow
def test_the_commands_follow(command, saved, tmp_path):
    """Convert, verify, export, quantize, test and predict a network for grey images."""
    grey = tmp_path / "grey.pkl"
    status, out, err = command(
        "convert_pretrained_weight", "--origin-dir", saved, "--save-dir", grey, "--in-chans", 1
    )
    assert (status, err) == (0, "")
    assert (
        "input:          1 channel: stage0.dense.conv.weight, stage0.pointwise.conv.weight " in out
    )
    assert command("verify", "--model", grey)[0] == 0
    photos = write_image_folder(tmp_path / "photos", train=6)

    status, out, _ = command("export", "--model", grey, "--fold-normalization")
    assert status == 0 and "input [batch, 1, 32, 32], grey, pixels of 0 to 255\n" in out
    status, out, _ = command("export", "--model", grey, "--format", "mge")
    assert status == 0 and "input [batch, 1, 32, 32], grey, normalized\n" in out
    status, out, err = command("quantize", "--model", grey, "--calibration", photos)
    assert (status, err) == (0, "")

    image = next(photos.rglob("*.jpg"))
    net = weights.load(grey, deploy=True)
    pixels = cv2.cvtColor(EXPECTS.evaluation_crop(cv2.imread(str(image))), cv2.COLOR_BGR2GRAY)
    normalized = (pixels - np.mean(EXPECTS.mean)) / np.mean(EXPECTS.std)
    powers = np.exp(logits(net, normalized[None, None].astype(np.float32))[0])
    for file in ("grey.pkl", "grey.onnx", "grey.mge", "grey-int8.onnx"):
        status, out, err = command("predict", image, "--model", tmp_path / file, "--json")
        assert (status, err) == (0, "")
        rows = json.loads(out)["images"][0]["predictions"]
        actual = {row["class"]: row["probability"] for row in rows}
        tolerance = 0.1 if "int8" in file else 1e-4
        assert np.allclose([actual[i] for i in range(3)], powers / powers.sum(), atol=tolerance)
        flags = ["--model", tmp_path / file, "--data", photos, "--workers", 0]
        assert command("test", *flags)[0] == 0

    status, _, err = command("export", "--model", grey, "--bgr-input")
    assert status == 2 and "takes images of 1 channels, which have no order BGR" in err
    kit = ["--kit", "rdk-x5", "--calibration", photos, "--out", tmp_path / "kit"]
    status, _, err = command("export", "--model", grey, *kit)
    assert status == 2 and "a kit is for images of three colours" in err
    hub = __import__("hubconf")
    assert hub.repvgga0(str(saved), 3, in_chans=1).options == {"in_chans": 1}
    assert hub.repvgga0(num_classes=3, in_chans=4).in_chans == 4


def test_four_channels_are_exported_and_not_read_from_image_files(command, saved, tmp_path):
    four = tmp_path / "four.pkl"
    command("convert_pretrained_weight", "--origin-dir", saved, "--save-dir", four, "--in-chans", 4)
    status, out, _ = command("export", "--model", four)
    assert status == 0 and "input [batch, 4, 32, 32], several channels, normalized\n" in out
    photos = write_image_folder(tmp_path / "photos", train=6)
    folder, six = ["--data", photos, "--workers", 0], ["--batch-size", 6]
    for name, *flags in (
        ("predict", photos, "--model", four),
        ("predict", photos, "--model", tmp_path / "four.onnx"),
        ("test", "--model", four, *folder),
        ("quantize", "--model", four, "--calibration", photos),
        ("train", "--arch", "RepVGGA0", "--pretrained", four, "--save", tmp_path, *folder, *six),
    ):
        status, _, err = command(name, *flags)
        assert status == 2 and "takes inputs of 4 channels" in err and err.count("\n") == 1, name


def test_training_on_grey_images(command, saved, tmp_path):
    photos = write_image_folder(tmp_path / "photos", train=6)
    flags = ["--data", photos, "--arch", "RepVGGA0", "--size", 32, "--epochs", 1, "--workers", 0,
             "--batch-size", 6, "--save", tmp_path, "--random-erasing", 1, "--color-jitter", 0.4,
             "--in-chans", 1]  # fmt: skip
    status, out, err = command("train", *flags, "--tag", "new")
    assert status == 0, err
    best = tmp_path / "RepVGGA0" / "new" / "best.pkl"
    contents = checkpoint.read(best)
    assert contents.options == {"in_chans": 1} and contents.preprocessing.channels == 1
    assert command("test", "--model", best, "--data", photos, "--workers", 0)[0] == 0
    status, out, err = command("train", *flags, "--tag", "old", "--pretrained", saved)
    assert status == 0, err
    assert "; for images of 1 channel: stage0.dense.conv.weight" in out
    latest = best.with_name("latest.pkl")
    status, _, err = command("train", *flags[:-2], "--in-chans", 3, "--resume", latest)
    assert status == 2 and "takes images of 1 channels; leave out --in-chans 3" in err
    teacher = ["--teacher", f"RepVGGA0:{saved}"]
    status, _, err = command("train", *flags, "--tag", "taught", *teacher)
    assert status == 2 and "the network in training 1; convert the teacher" in err
    status, _, err = command("train", *flags[:-2], "--in-chans", 2)
    assert status == 2 and "an image file gives 3 colours or 1 grey value" in err
