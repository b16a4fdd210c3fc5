"""The .mge files, run by MegEngine's own runtime and compared with the live networks."""

import os
import pickle

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np
import pytest
from megengine.quantization import min_max_fakequant_qconfig
from megengine.quantization.quantize import quantize, quantize_qat

from deployment import mge_export
from deployment.input_format import raw_pixels
from deployment.mge_export import export_mge, load, read_metadata
from deployment.tracing import ExportError, replay
from models.repghost import Bottleneck
from tests.deployment.networks import SMALL, Clipped
from utils import UserError


def assert_runs_as(path, model, images):
    model.eval()
    expected = model(mge.Tensor(images)).numpy()
    error = np.abs(load(path)(images) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()


@pytest.fixture(autouse=True)
def avx2(monkeypatch):
    """Layouts are chosen as on a processor without AVX-512."""
    monkeypatch.setattr(mge_export, "processor_has", lambda feature: False)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", ["RepVGG, SE", "MobileOne", "RepViT"])
def test_it_runs_as_the_network(kind, threads, network, preprocessing, tmp_path, capfd):
    model, path = network(kind), tmp_path / "a.mge"
    metadata = {"arch": "RepVGGA0", "classes": ["apple"]}
    device = mge.get_default_device()
    done = export_mge(model, path, preprocessing, size=48, threads=threads, metadata=metadata)
    assert mge.get_default_device() == device
    assert done.relative_error <= 1e-5 and done.failed == {}
    assert done.layout == ("nchw88" if kind == "RepVGG, SE" and threads == 1 else "nchw")
    images = np.random.default_rng(1).standard_normal((5, 3, 48, 48), np.float32)
    assert_runs_as(path, model, images)
    assert_runs_as(path, model, images[:1, :, :32])  # any number of images of any size
    said = read_metadata(path)
    assert said["classes"] == ["apple"] and said["preprocessing"]["size"] == 48
    assert capfd.readouterr() == ("", "")  # MegEngine would tell that there is no GPU


def test_with_its_branches(network, preprocessing, tmp_path):
    model, path = network("RepVGGplus", deploy=False), tmp_path / "a.mge"
    export_mge(model, path, preprocessing, size=32)
    assert_runs_as(
        path, model, np.random.default_rng(1).standard_normal((2, 3, 32, 32), np.float32)
    )


def test_raw_pixels(network, preprocessing, tmp_path):
    model, path = network("RepVGG"), tmp_path / "a.mge"
    takes = raw_pixels(preprocessing)
    export_mge(model, path, preprocessing, takes=takes, size=32)
    pictures = np.random.default_rng(2).integers(200, 256, (2, 32, 32, 3), np.uint8)
    model.eval()
    normalized = np.stack([preprocessing.normalize(picture) for picture in pictures])
    expected = model(mge.Tensor(normalized)).numpy()
    found = load(path)(pictures[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_layout_that_fails_is_left_for_the_plain_one(preprocessing, tmp_path, capfd, monkeypatch):
    """Squeeze-and-excitation of 20 channels fails in blocks of 8."""
    monkeypatch.setattr(mge_export, "_layouts", lambda *_: ["nchw88", "nchw"])
    model = Bottleneck(3, 20, 12, 5, se=True, stride=2, deploy=True)
    path = tmp_path / "a.mge"
    done = export_mge(model, path, preprocessing, size=32)
    assert done.layout == "nchw" and "number of elements" in done.failed["nchw88"]
    assert_runs_as(path, model, np.zeros((1, 3, 32, 32), np.float32) + 1)
    assert list(tmp_path.iterdir()) == [path] and capfd.readouterr() == ("", "")


def test_avx512_takes_the_plain_layout(network, monkeypatch):
    model = network("RepVGG")
    assert mge_export._layouts(model, threads=1) == ["nchw88", "nchw"]
    monkeypatch.setattr(mge_export, "processor_has", lambda feature: feature == "avx512f")
    assert mge_export._layouts(model, threads=1) == ["nchw"]


def test_int8_is_never_laid_out_anew():
    """MegEngine takes seconds for an image otherwise."""
    model = M.Sequential(M.ConvRelu2d(8, 8, 3))
    assert mge_export._layouts(model, threads=1) == ["nchw88", "nchw"]
    trained = quantize_qat(model, qconfig=min_max_fakequant_qconfig)
    trained(mge.Tensor(np.ones((1, 8, 8, 8), np.float32)))
    assert mge_export._layouts(quantize(trained), threads=1) == ["as it is"]


def test_clip_is_refused(network, preprocessing, tmp_path):
    model = network("RepVGG")
    model.stage2 = M.Sequential(*model.stage2, Clipped())
    with pytest.raises(ExportError, match=r"^module stage2\.2 uses F\.clip, .* use F\.minimum"):
        export_mge(model, tmp_path / "a.mge", preprocessing, size=32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", SMALL)
def test_no_network_of_ours_clips(kind, network):
    """In train form; what is fused has passed through ONNX's handlers, where there is no clip."""
    operators = []
    model = network(kind, deploy=False)
    model.eval()
    replay(model, (32, 32), None, lambda path, operator, *_: operators.append(operator))
    assert F.relu in operators and F.clip not in operators


def test_a_file_that_computes_something_else_is_not_left_behind(
    network, preprocessing, tmp_path, monkeypatch
):
    monkeypatch.setattr(mge_export, "load", lambda path: lambda images: load(path)(images) * 1.001)
    with pytest.raises(ExportError, match="was not written: its logits differ by"):
        export_mge(network("RepVGG"), tmp_path / "a.mge", preprocessing, size=32)
    assert list(tmp_path.iterdir()) == []


class Code:
    """A pickle of it makes a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_metadata_of_others_is_no_program(network, preprocessing, tmp_path, monkeypatch):
    path, trap = tmp_path / "a.mge", tmp_path / "trap"
    monkeypatch.setattr(mge_export.json, "dumps", lambda _: Code(trap))
    export_mge(network("RepVGG"), path, preprocessing, size=32)
    assert pickle.dumps(Code(trap))[-40:] in path.read_bytes()  # it is in the file
    assert read_metadata(path) == {}
    load(path)
    assert not trap.exists()


def test_what_is_no_such_file(tmp_path):
    path = tmp_path / "a.mge"
    for read in (load, read_metadata):
        with pytest.raises(UserError, match="cannot read .*No such file"):
            read(path)
    path.write_bytes(b"nothing of the kind")
    for read in (load, read_metadata):
        with pytest.raises(UserError, match="none of MegEngine's, or damaged"):
            read(path)
