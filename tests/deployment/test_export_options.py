"""Feature maps, any height and width, half precision and other heads, under the runtimes."""

import json

import models

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np
import onnx
import onnxruntime
import pytest

from deployment import features, half
from deployment.mge_export import export_mge
from deployment.mge_runtime import MgeFile
from deployment.onnx_export import export_onnx
from deployment.tracing import ExportError
from tests.deployment.networks import SMALL
from tests.support import slow_but, write_image_folder

SOME = ["RepVGG, SE", "RepViT", "RepGhost"]


def run(path, images):
    return onnxruntime.InferenceSession(str(path)).run(None, {"input": images})


def noise(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def live(model, images):
    model.eval()
    return model(mge.Tensor(images)).numpy()


def assert_close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("kind", slow_but(["RepVGG, SE", "FastViT"], SMALL))
def test_feature_maps(kind, network, preprocessing, tmp_path):
    model, path = network(kind), tmp_path / "maps.onnx"
    model.eval()
    done = export_onnx(model, path, preprocessing, size=64, features=True)
    assert done.relative_error <= 1e-5 and "Gemm" not in done.operators
    session = onnxruntime.InferenceSession(str(path))
    shapes = {output.name: output.shape for output in session.get_outputs()}
    assert shapes == dict(features.shapes(model, "batch", (64, 64)))
    assert [shape[1] for shape in shapes.values()] == list(model.num_features)
    images = noise(2, 3, 64, 64)
    maps = model.features(mge.Tensor(images))
    for actual, expected in zip(session.run(None, {"input": images}), maps, strict=True):
        assert_close(actual, expected.numpy())
    assert model(mge.Tensor(images)).shape == (2, 10)  # as it was


def test_feature_maps_of_any_size_for_megengine(network, preprocessing, tmp_path):
    model, path = network("RepVGG"), tmp_path / "maps.mge"
    model.eval()
    export_mge(model, path, preprocessing, size=64, features=True, free_size=True)
    images = noise(2, 3, 48, 80)
    maps = model.features(mge.Tensor(images))
    for actual, expected in zip(MgeFile(path)(images), maps, strict=True):
        assert_close(actual, expected.numpy())


@pytest.mark.parametrize("kind", slow_but(SOME[:2], SOME))
def test_any_height_and_width(kind, network, preprocessing, tmp_path):
    model, path = network(kind), tmp_path / "a.onnx"
    export_onnx(model, path, preprocessing, size=48, free_size=True)
    (entry,) = onnxruntime.InferenceSession(str(path)).get_inputs()
    assert entry.shape == ["batch", 3, "height", "width"]
    for images in (noise(1, 3, 64, 40), noise(3, 3, 33, 90)):
        assert_close(run(path, images)[0], live(model, images))


@pytest.mark.parametrize("kind", slow_but(SOME[:2], SOME))
def test_half_precision(kind, network, preprocessing, tmp_path):
    model, path, whole = network(kind), tmp_path / "a.onnx", tmp_path / "whole.onnx"
    done = export_onnx(model, path, preprocessing, size=48, half=True)
    assert 1e-5 < done.relative_error <= half.TOLERANCE
    export_onnx(model, whole, preprocessing, size=48)
    assert path.stat().st_size < 0.7 * whole.stat().st_size
    types = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
    assert types == {onnx.TensorProto.FLOAT16}
    images = noise(3, 3, 48, 48)
    (logits,) = run(path, images)
    assert logits.dtype == np.float32  # as the images
    assert_close(logits, live(model, images), half.TOLERANCE)


def test_what_half_precision_cannot_hold(network, preprocessing, tmp_path):
    model = network("RepVGG")
    model.linear.bias[0] = 1e5
    with pytest.raises(ExportError, match=r"linear.bias has values above 65,504"):
        export_onnx(model, tmp_path / "a.onnx", preprocessing, size=48, half=True)
    assert list(tmp_path.iterdir()) == []


class Head(M.Module):
    """Of MegEngine's own layers."""

    def __init__(self):
        super().__init__()
        self.layers = M.Sequential(M.Linear(64, 24), M.BatchNorm1d(24), M.ReLU(), M.Dropout(),
                                   M.Linear(24, 5, bias=False))  # fmt: skip

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("head", [lambda: M.Linear(64, 5), Head], ids=["linear", "layers"])
def test_a_head_of_the_users_own(head, network, preprocessing, tmp_path):
    """The output has the head's shape, whatever `num_classes` says."""
    model = network("RepVGG")
    model.linear = head()
    export_onnx(model, tmp_path / "a.onnx", preprocessing, size=48)
    export_mge(model, tmp_path / "a.mge", preprocessing, size=48)
    images = noise(2, 3, 48, 48)
    expected = live(model, images)
    assert expected.shape == (2, 5)
    assert_close(run(tmp_path / "a.onnx", images)[0], expected)
    assert_close(MgeFile(tmp_path / "a.mge")(images), expected)


def test_a_network_without_feature_maps(preprocessing, tmp_path):
    class Plain(M.Module):
        def forward(self, x):
            return F.mean(x, axis=(2, 3))

    with pytest.raises(ExportError, match="Plain has no method `features`"):
        export_onnx(Plain(), tmp_path / "a.onnx", preprocessing, features=True)


def test_a_preprocessing_of_other_channels(preprocessing, tmp_path):
    model = models.create("RepGhost050", 3, in_chans=1, deploy=True)
    with pytest.raises(ExportError, match="give a Preprocessing with channels=1"):
        export_onnx(model, tmp_path / "a.onnx", preprocessing, size=32)


def test_the_command(command, small_repvgg_a0, tmp_path):
    """All three at once, and what does not go together."""
    path = tmp_path / "a.onnx"
    flags = ["--arch", "RepVGGA0", "--out", path, "--size", "dynamic", "--half", "--features"]
    status, out, err = command("export", *flags)
    assert (status, err) == (0, "")
    assert "input:        input [batch, 3, height, width], RGB, normalized\n" in out
    assert "output:       stage1 [batch, 16, height/4, width/4]\n" in out
    assert "on photographs, in float16, under onnxruntime\n" in out
    status, out, _ = command("export", *flags, "--json")
    assert json.loads(out)["outputs"][3] == ["stage4", ["batch", 64, "height/32", "width/32"]]
    photos = write_image_folder(tmp_path / "photos", val=2, train=0)
    status, _, err = command("quantize", "--model", path, "--calibration", photos)
    assert status == 2 and "is in half precision; export it again without --half" in err
    kit = ["--kit", "rdk-x5", "--calibration", tmp_path]
    for wrong, sentence in (
        (["--format", "mge", "--half"], "--half is for ONNX"),
        (["--features", "--output-name", "x"], "--features has outputs stage1 to stage4"),
        ([*kit, "--half"], "the board decides about --half"),
        ([*kit, "--size", "dynamic"], "a kit is for square images"),
    ):
        status, out, err = command("export", "--arch", "RepVGGA0", "--out", tmp_path / "b", *wrong)
        assert (status, out, err.count("\n")) == (2, "", 1) and sentence in err
