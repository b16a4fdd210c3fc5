"""The ONNX files: checked by onnx, run by onnxruntime, compared with the live networks."""

import json

import models

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np
import onnx
import onnxruntime
import pytest

from deployment import onnx_operators
from deployment.input_format import in_color_order, raw_pixels
from deployment.onnx_export import export_onnx
from deployment.tracing import ExportError
from tests.deployment.networks import SMALL, Clipped
from utils import UserError

FUSED = {
    "Conv", "Relu", "Add", "Mul", "GlobalAveragePool", "Flatten", "Gemm",
    "Sigmoid", "HardSigmoid", "Erf", "Div",
}  # fmt: skip


def logits_of(path, images):
    session = onnxruntime.InferenceSession(str(path))
    return session.run(["logits"], {"input": images})[0]


def live(model, images):
    model.eval()
    return model(mge.Tensor(images)).numpy()


def assert_close(found, expected):
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("opset", [11, 17])
@pytest.mark.parametrize("kind", SMALL)
def test_fused(kind, opset, network, preprocessing, tmp_path):
    model, path = network(kind), tmp_path / "a.onnx"
    done = export_onnx(model, path, preprocessing, size=48, opset=opset)
    assert done.relative_error <= 1e-5
    assert done.parameters == models.profile(model, 48).parameters
    assert done.initializers == len(model.state_dict())
    assert done.operators.keys() <= FUSED
    assert ("Erf" in done.operators) == (kind in ("RepViT", "FastViT", "RepLKNet"))
    assert ("HardSigmoid" in done.operators) == (kind == "RepGhost")

    proto = onnx.load(path)
    onnx.checker.check_model(proto, full_check=True)
    assert proto.opset_import[0].version == opset and len(proto.opset_import) == 1
    assert proto.ir_version == onnx.helper.find_min_ir_version_for(proto.opset_import)
    inferred = onnx.shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True).graph
    shapes = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*inferred.value_info, *inferred.output)
    }
    for node in inferred.node:
        assert all(shapes[name] != [] or node.op_type == "Constant" for name in node.output)
        assert all(dim for name in node.output for dim in shapes[name]), node.name
    assert shapes["logits"] == ["batch", 10]
    assert {init.name for init in inferred.initializer} == set(model.state_dict())

    images = np.random.default_rng(1).standard_normal((5, 3, 48, 48), np.float32)
    assert_close(logits_of(path, images), live(model, images))


@pytest.mark.parametrize("kind", ["RepVGGplus", "MobileOne", "RepViT", "FastViT", "RepLKNet"])
def test_with_its_branches(kind, network, preprocessing, tmp_path):
    model, path = network(kind, deploy=False), tmp_path / "a.onnx"
    done = export_onnx(model, path, preprocessing, size=48)
    assert model.training  # as it was
    assert done.operators["BatchNormalization"] > 0
    images = np.random.default_rng(1).standard_normal((2, 3, 48, 48), np.float32)
    assert_close(logits_of(path, images), live(model, images))


def test_shape_names_and_metadata(network, preprocessing, tmp_path):
    path = tmp_path / "a.onnx"
    names = {"input_name": "data", "output_name": "output"}
    metadata = {"arch": "RepVGGA0", "classes": ["apple", "pear"], "options": {"heads": 1}}
    model = network("RepVGG")
    export_onnx(model, path, preprocessing, size=(48, 64), batch=2, metadata=metadata, **names)
    session = onnxruntime.InferenceSession(str(path))
    (data,), (output,) = session.get_inputs(), session.get_outputs()
    assert (data.name, data.shape, data.type) == ("data", [2, 3, 48, 64], "tensor(float)")
    assert (output.name, output.shape) == ("output", [2, 10])
    said = session.get_modelmeta().custom_metadata_map
    assert said["arch"] == "RepVGGA0" and json.loads(said["classes"]) == ["apple", "pear"]
    assert json.loads(said["options"]) == {"heads": 1}
    assert json.loads(said["preprocessing"])["size"] == 48
    assert json.loads(said["preprocessing"])["color"] == "RGB"


@pytest.mark.parametrize("kind", ["RepVGG", "RepViT"])  # the others: test_the_first_convolution
def test_raw_pixels_in_the_other_order_are_exact_at_the_borders(
    kind, network, preprocessing, tmp_path
):
    """A mean in the bias instead would make the logits of these white pictures differ by much."""
    model, path = network(kind), tmp_path / "a.onnx"
    file_input = raw_pixels(in_color_order(preprocessing, "BGR"))
    done = export_onnx(model, path, preprocessing, file_input=file_input, size=32)
    assert done.parameters == models.profile(model, 32).parameters
    pictures = np.random.default_rng(2).integers(200, 256, (3, 32, 32, 3), np.uint8)
    expected = live(model, np.stack([preprocessing.normalize(image) for image in pictures]))
    assert_close(logits_of(path, pictures.transpose(0, 3, 1, 2).astype(np.float32)), expected)
    said = json.loads(
        onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map["preprocessing"]
    )
    assert (said["color"], said["mean"], said["std"]) == ("BGR", [0, 0, 0], [1, 1, 1])


def test_only_the_order_of_the_colours(network, preprocessing, tmp_path):
    model, path = network("RepVGG"), tmp_path / "a.onnx"
    file_input = in_color_order(preprocessing, "BGR")
    done = export_onnx(model, path, preprocessing, file_input=file_input, size=32)
    assert "Add" not in done.operators
    images = np.random.default_rng(1).standard_normal((2, 3, 32, 32), np.float32)
    assert_close(logits_of(path, np.ascontiguousarray(images[:, ::-1])), live(model, images))


def test_a_train_form_cannot_take_other_images(network, preprocessing, tmp_path):
    file_input = raw_pixels(preprocessing)
    with pytest.raises(ExportError, match="fuse the network"):
        export_onnx(
            network("RepVGG", deploy=False),
            tmp_path / "a.onnx",
            preprocessing,
            file_input=file_input,
        )
    assert list(tmp_path.iterdir()) == []


def test_an_operator_without_a_handler_names_its_module(network, preprocessing, tmp_path):
    model = network("RepVGG")
    model.stage2 = M.Sequential(*model.stage2, Clipped())
    with pytest.raises(ExportError, match=r"^module stage2\.2 uses .* no handler for ONNX: clip;"):
        export_onnx(model, tmp_path / "a.onnx", preprocessing, size=32)
    model.stage2 = M.Sequential(*model.stage2[:2], M.MaxPool2d(2))
    with pytest.raises(ExportError, match=r"^module stage2\.2 uses .*: MaxPool2d;"):
        export_onnx(model, tmp_path / "a.onnx", preprocessing, size=32)
    assert list(tmp_path.iterdir()) == []


class Mean(M.Module):
    def forward(self, x):
        return x + F.mean(x, 1, keepdims=True)


@pytest.mark.parametrize(
    "module, said",
    [
        (Mean(), "a mean over axes 1; only a mean over"),
        (M.BatchNorm2d(16, affine=False), "a batch norm without weight or bias"),
    ],
)
def test_an_operator_that_cannot_be_exported_names_its_module(
    module, said, network, preprocessing, tmp_path
):
    model = network("RepVGG")
    model.stage1 = M.Sequential(*model.stage1, module)
    model.eval()
    with pytest.raises(ExportError, match=rf"^module stage1\.\d .*{said}"):
        export_onnx(model, tmp_path / "a.onnx", preprocessing, size=32)


def test_a_file_that_computes_something_else_is_not_left_behind(
    network, preprocessing, tmp_path, monkeypatch
):
    def wrong(graph, x):
        return graph.op("Mul", x, graph.operand(0.999))

    path = tmp_path / "a.onnx"
    path.write_bytes(b"what was there")
    monkeypatch.setitem(onnx_operators.HANDLERS, F.relu, wrong)
    with pytest.raises(ExportError, match=r"was not written: its logits differ by \d"):
        export_onnx(network("RepVGG"), path, preprocessing, size=32)
    assert path.read_bytes() == b"what was there" and list(tmp_path.iterdir()) == [path]


def test_weights_that_are_no_numbers_are_refused(network, preprocessing, tmp_path):
    model = network("RepVGG")
    model.linear.bias[0] = float("nan")
    with pytest.raises(ExportError, match="computes numbers that are not finite"):
        export_onnx(model, tmp_path / "a.onnx", preprocessing, size=32)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(network, preprocessing, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot save"):
        export_onnx(network("RepVGG"), tmp_path / "file" / "a.onnx", preprocessing, size=32)
