"""The .mge files, run by MegEngine's own runtime and compared with the live networks."""

import os
import pickle
from types import SimpleNamespace

from models.environment import processor_has
from models.repghost import Bottleneck

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np
import pytest
from megengine.quantization import min_max_fakequant_qconfig
from megengine.quantization.quantize import quantize, quantize_qat

from deployment import mge_export
from deployment.input_format import raw_pixels
from deployment.mge_export import export_mge
from deployment.mge_runtime import MgeFile
from deployment.tracing import ExportError, replay
from tests.deployment.networks import SMALL, Clipped
from tests.support import slow_but
from utils import UserError

# oneDNN, which MegEngine's runtime calls for blocks of 8 channels, ends the process there
LACKS_BLOCKS = processor_has("AuthenticAMD") and processor_has("avx512f")


def assert_runs_as(path, model, images):
    model.eval()
    expected = model(mge.Tensor(images)).numpy()
    error = np.abs(MgeFile(path)(images) - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "kind",
    slow_but(["RepVGG, SE"], ["RepVGG, SE", "MobileOne", "RepViT", "FastViT", "RepLKNet"]),
)
def test_it_runs_as_the_network(kind, network, preprocessing, tmp_path, capfd):
    model, path = network(kind), tmp_path / "a.mge"
    metadata = {"arch": "RepVGGA0", "classes": ["apple"]}
    device = mge.get_default_device()
    done = export_mge(model, path, preprocessing, size=48, metadata=metadata)
    assert mge.get_default_device() == device
    assert done.relative_error <= 1e-5 and done.layout == "nchw"
    images = np.random.default_rng(1).standard_normal((5, 3, 48, 48), np.float32)
    assert_runs_as(path, model, images)
    assert_runs_as(path, model, images[:1, :, :32])  # any number of images of any size
    file = MgeFile(path)
    assert file.metadata["classes"] == ["apple"] and file.layout == "nchw"
    assert file.metadata["preprocessing"]["size"] == 48
    assert list(tmp_path.iterdir()) == [path]
    assert capfd.readouterr() == ("", "")  # MegEngine would tell that there is no GPU


class Halves(M.Module):
    """A network with an operator of several outputs, as shuffling networks have it."""

    def __init__(self):
        super().__init__()
        self.conv = M.Conv2d(3, 4, 3)

    def forward(self, x):
        first, second = F.split(self.conv(x), 2, axis=1)
        return F.mean(first - 2 * second, axis=(2, 3))


def test_an_operator_of_several_outputs(preprocessing, tmp_path):
    assert export_mge(Halves(), tmp_path / "a.mge", preprocessing, size=32).relative_error < 1e-5


def test_blocks_of_8_channels(network, preprocessing, tmp_path):
    model, path = network("RepVGG, SE"), tmp_path / "a.mge"
    if LACKS_BLOCKS:
        with pytest.raises(UserError, match="export it without --layout, as nchw, which runs on"):
            export_mge(model, path, preprocessing, size=48, layout="nchw88")
        assert not path.exists()
        return
    assert export_mge(model, path, preprocessing, size=48, layout="nchw88").layout == "nchw88"
    assert MgeFile(path).layout == "nchw88"
    assert_runs_as(
        path, model, np.random.default_rng(1).standard_normal((2, 3, 48, 48), np.float32)
    )


def test_with_its_branches(network, preprocessing, tmp_path):
    model, path = network("RepVGGplus", deploy=False), tmp_path / "a.mge"
    export_mge(model, path, preprocessing, size=32)
    assert_runs_as(
        path, model, np.random.default_rng(1).standard_normal((2, 3, 32, 32), np.float32)
    )


def test_raw_pixels(network, preprocessing, tmp_path):
    model, path = network("RepVGG"), tmp_path / "a.mge"
    file_input = raw_pixels(preprocessing)
    export_mge(model, path, preprocessing, file_input=file_input, size=32)
    pictures = np.random.default_rng(2).integers(200, 256, (2, 32, 32, 3), np.uint8)
    model.eval()
    normalized = np.stack([preprocessing.normalize(picture) for picture in pictures])
    expected = model(mge.Tensor(normalized)).numpy()
    found = MgeFile(path)(pictures[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32))
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


def test_a_network_that_blocks_do_not_suit(preprocessing, tmp_path, capfd):
    """Squeeze-and-excitation of 20 channels fails in blocks of 8."""
    model = Bottleneck(3, 20, 12, 5, se=True, stride=2, deploy=True)
    path = tmp_path / "a.mge"
    how = "exit status" if LACKS_BLOCKS else "number of elements"
    with pytest.raises(UserError, match=f"{how}.* on {path}, whose layout is nchw88; "):
        export_mge(model, path, preprocessing, size=32, layout="nchw88")
    assert list(tmp_path.iterdir()) == [] and capfd.readouterr() == ("", "")


def test_the_plain_layout_is_the_default_on_every_processor(network):
    model = network("RepVGG")
    fused = {"enable_fuse_conv_bias_nonlinearity": True}
    assert mge_export._options(model, "nchw") == fused
    assert mge_export._options(model, "nchw88") == {**fused, "enable_nchw88": True}


def test_int8_is_never_laid_out_anew():
    """MegEngine takes seconds for an image otherwise."""
    trained = quantize_qat(M.Sequential(M.ConvRelu2d(8, 8, 3)), qconfig=min_max_fakequant_qconfig)
    trained(mge.Tensor(np.ones((1, 8, 8, 8), np.float32)))
    assert mge_export._options(quantize(trained), "nchw") == {}
    with pytest.raises(ExportError, match="leave out --layout"):
        mge_export._options(quantize(trained), "nchw88")


def test_clip_is_refused(network, preprocessing, tmp_path):
    model = network("RepVGG")
    model.stage2 = M.Sequential(*model.stage2, Clipped())
    with pytest.raises(ExportError, match=r"^module stage2\.2 uses F\.clip, .* use F\.minimum"):
        export_mge(model, tmp_path / "a.mge", preprocessing, size=32)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", slow_but(["RepVGGplus", "RepGhost"], SMALL))
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
    monkeypatch.setattr(
        mge_export, "MgeFile", lambda *names: lambda images: MgeFile(*names)(images) * 1.001
    )
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
    monkeypatch.setattr(mge_export, "json", SimpleNamespace(dumps=lambda _: Code(trap)))
    export_mge(network("RepVGG"), path, preprocessing, size=32)
    assert pickle.dumps(Code(trap))[-40:] in path.read_bytes()  # it is in the file
    assert MgeFile(path).metadata == {}
    assert not trap.exists()
