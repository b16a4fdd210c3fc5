"""The RDK X5 kit: each file in it as the vendor's tools document it."""

import ast
import json
import re
from dataclasses import replace

import models
from models import equivalence, init
from models.repvit import RepViT

import cv2
import megengine as mge
import numpy as np
import onnx
import onnxruntime
import pytest

from data.transforms import BASECLS, Preprocessing
from deployment.boards import rdk, sensitivity
from deployment.int8 import graph as graph_of
from deployment.int8 import qdq
from deployment.onnx_export import export_onnx
from deployment.onnx_graph import to_onnx
from tests.deployment.networks import SMALL
from utils import UserError

RGB = Preprocessing()
SETTINGS = """\
model_parameters:
  onnx_model: './RepVGG-A0.onnx'
  march: 'bayes-e'
  layer_out_dump: False
  working_dir: 'RepVGG-A0_224x224_nv12'
  output_model_file_prefix: 'RepVGG-A0_224x224_nv12'
  debug_mode: dump_calibration_data
  remove_node_type: 'Quantize;Dequantize;Transpose;Cast;Reshape'

input_parameters:
  input_name: ""
  input_type_rt: 'nv12'
  input_space_and_range: 'bt601_video'
  input_type_train: 'rgb'
  input_layout_train: 'NCHW'
  input_shape: ''
  norm_type: 'data_mean_and_scale'
  mean_value: 123.675 116.28 103.53
  scale_value: 0.01712475 0.017507 0.01742919

calibration_parameters:
  cal_data_dir: './calibration_data_rgb_f32'
  cal_data_type: 'float32'
  calibration_type: 'default'

compiler_parameters:
  compile_mode: 'latency'
  debug: False
  optimize_level: 'O3'
"""


@pytest.fixture
def photos(tmp_path, rng):
    """Ten PNG files of different shapes in two folders."""
    for i in range(10):
        path = tmp_path / "photos" / "ab"[i % 2] / f"ILSVRC2012_val_{i:08}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = rng.integers(0, 256, (6, 8, 3), np.uint8)
        shape = (400 + 20 * i, 300)
        cv2.imwrite(str(path), cv2.resize(small, shape if i % 3 else shape[::-1]))
    return tmp_path / "photos"


def test_the_kit_of_repvgg(tmp_path, tiny, photos):
    model = models.to_deploy(tiny(num_classes=7))
    model.eval()
    out = tmp_path / "kit"
    listed = rdk.write_kit(model, RGB, photos, out, count=4, metadata={"arch": "RepVGGA0"})
    assert sorted(listed) == sorted(path.name for path in out.iterdir())
    assert (out / "RepVGG_A0_config.yaml").read_text().partition("\n")[2] == SETTINGS

    network = onnx.load(out / "RepVGG-A0.onnx")
    assert [opset.version for opset in network.opset_import] == [11]
    (entry,), (result,) = network.graph.input, network.graph.output
    assert (entry.name, result.name) == ("data", "output")
    dims = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (entry, result)]
    assert dims == [[1, 3, 224, 224], [1, 7]]

    files = sorted((out / "calibration_data_rgb_f32").iterdir())
    # every second or third of a/0 a/2 a/4 a/6 a/8 b/1 b/3 b/5 b/7 b/9
    assert [file.name for file in files] == [f"ILSVRC2012_val_{i:08}.rgb" for i in (0, 1, 4, 5)]
    assert {file.stat().st_size for file in files} == {602_112}
    for i, file in zip((0, 1, 4, 5), files, strict=True):
        (source,) = photos.rglob(f"*{i:08}.png")
        image = cv2.imread(str(source))
        height, width = image.shape[:2]
        if width < height:
            image = cv2.resize(image, (256, round(256 * height / width)))
        else:
            image = cv2.resize(image, (round(256 * width / height), 256))
        top, left = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
        expected = image[top : top + 224, left : left + 224, [2, 1, 0]].transpose(2, 0, 1)
        found = np.fromfile(file, "<f4").reshape(3, 224, 224)
        assert np.array_equal(found, expected)

    readme = (out / "README.txt").read_text()
    for line in (
        "hb_mapper checker --model-type onnx --march bayes-e --model ./RepVGG-A0.onnx",
        "hb_mapper makertbin --model-type onnx --config RepVGG_A0_config.yaml",
        "4 images: short side 256, centre crop 224",
        "found on 4 of the images",
        "No board and no toolchain of the vendor was at hand",
    ):
        assert line in readme


def test_the_network_is_equalized_and_its_ranges_are_told(tmp_path, tiny, photos):
    model = models.to_deploy(tiny(num_classes=7))
    preprocessing = replace(RGB, size=32)
    rdk.write_kit(model, preprocessing, photos, tmp_path / "kit", count=4)
    export_onnx(
        model, tmp_path / "a.onnx", preprocessing, size=32, opset=11, batch=1, input_name="data"
    )
    kit, plain = onnx.load(tmp_path / "kit" / "RepVGG-A0.onnx"), onnx.load(tmp_path / "a.onnx")
    pixels = next((tmp_path / "kit" / "calibration_data_rgb_f32").iterdir())
    data = np.fromfile(pixels, np.float32).reshape(1, 3, 32, 32) / 128 - 1
    found = [onnxruntime.InferenceSession(m.SerializeToString()).run(None, {"data": data})[0]
             for m in (kit, plain)]  # fmt: skip
    assert np.array_equal(*found)
    kernels = [onnx.numpy_helper.to_array(m.graph.initializer[0]) for m in (kit, plain)]
    assert not np.array_equal(*kernels)
    bounds = json.loads((tmp_path / "kit" / "activation_ranges.json").read_text())
    assert list(bounds) == qdq.activations(kit)
    assert all(low <= high for low, high in bounds.values())
    low, high = bounds["data"]
    assert -2.2 < low < 0 < high < 2.7  # what black and white become


@pytest.mark.parametrize(
    ("arch", "network", "config", "compiled", "settings"),
    [
        ("RepVGGB1g4", "RepVGG-B1g4", "RepVGG_B1g4_config", "RepVGG-B1g4", "dr"),
        ("RepVGGD2se", "RepVGG-D2se", "RepVGG_D2se_config", "RepVGG-D2se", "dr"),
        (
            "RepVGGplusL2pse",
            "RepVGGplus-L2pse",
            "RepVGGplus_L2pse_config",
            "RepVGGplus-L2pse",
            "dr",
        ),
        ("RepViTM0_9", "repvit_m0_9", "RepViT_m0_9_config", "RepViT", "r"),
        ("RepGhost100", "repghostnet_100", "RepGhost_100", "RepGhost", "d"),
        ("MobileOneS0", "mobileone_s0", "MobileOne_S0_config", "MobileOne", ""),
        ("RepLKNet31B", "replknet_31b", "RepLKNet_31B_config", "RepLKNet", ""),
        ("FastViTT8", "fastvit_t8", "FastViT_T8_config", "FastViT", "n" + 10 * '"'),
    ],
)
def test_names_are_the_zoos(arch, network, config, compiled, settings):
    names = rdk.names_of(arch, 224)
    assert names["onnx"] == f"{network}.onnx"
    assert names["config"] == f"{config}.yaml"
    assert names["compiled"] == f"{compiled}_224x224_nv12"
    keys = [line.split(":")[0].strip() for line in names["settings"].splitlines()]
    assert "".join(key[0] for key in keys) == settings


@pytest.mark.parametrize("arch, count", [("FastViTT8", 10), ("FastViTT12", 4), ("FastViTS12", 5)])
def test_the_operators_in_int16_are_those_of_the_network(arch, count):
    names = rdk.names_of(arch, 224)
    assert names["folder"] == "FastViT_224x224_nv12_mix"
    key, _, text = names["settings"].strip().partition(": ")
    assert key == "node_info"
    chosen = ast.literal_eval(text)
    int16 = {"ON": "BPU", "InputType": "int16", "OutputType": "int16"}
    assert len(chosen) == count and all(value == int16 for value in chosen.values())
    with init.uninitialized():
        model = models.create(arch, deploy=True)
    model.eval()
    graph = to_onnx(model, (224, 224), 11, 1, "data", "output").graph
    kinds = {node.name: node.op_type for node in graph.node}
    assert {kinds[name] for name in chosen} <= {"Conv", "Mul", "Add", "GlobalAveragePool"}
    last = {"Mul": "Conv", "Add": "Conv", "GlobalAveragePool": "Flatten", "Conv": None}
    users = graph_of.consumers(onnx.helper.make_model(graph))
    for name in chosen:  # the last multiplication of a GELU, the last addition of a block
        assert last[kinds[name]] in (None, users[name][0].op_type), name


def test_mobileones_folder_and_the_compilers_settings():
    names = rdk.names_of("MobileOneS3", 224)
    assert names["folder"] == "MobileOne_224x224_nv12_int8"
    assert names["compiler"] == "  jobs: 32\n"
    assert rdk.names_of("RepVGGA0", 224)["compiler"] == ""


@pytest.mark.parametrize(
    ("arch", "network", "name", "settings"),
    [
        ("RepVGGA1", "RepVGG-A1", "RepVGG", "dr"),
        ("RepViTM0_9", "repvit_m0_9", "RepViT", "r"),
        ("RepGhost100", "repghostnet_100", "RepGhost", ""),
        ("MobileOneS1", "mobileone_s1", "MobileOne", ""),
    ],
)
def test_the_x3s_names_are_those_of_the_family(arch, network, name, settings):
    names = rdk.names_of(arch, 224, "rdk-x3")
    assert names["onnx"] == f"{network}.onnx"
    assert names["config"] == f"{name}_config.yaml"
    assert names["compiled"] == f"{name}_224x224_nv12"
    keys = [line.split(":")[0].strip() for line in names["settings"].splitlines()]
    assert "".join(key[0] for key in keys) == settings


def test_the_kit_of_the_x3(tmp_path, tiny, photos):
    model, out = models.to_deploy(tiny(num_classes=7)), tmp_path / "kit"
    rdk.write_kit(model, replace(RGB, size=32), photos, out, count=2, board="rdk-x3")
    expected = SETTINGS.replace("bayes-e", "bernoulli2").replace(
        "RepVGG-A0_224x224", "RepVGG_32x32"
    )
    assert (out / "RepVGG_config.yaml").read_text().partition("\n")[2] == expected
    readme = (out / "README.txt").read_text()
    assert "RepVGGA0 for the RDK X3 (march bernoulli2)" in readme
    assert "checker --model-type onnx --march bernoulli2" in readme
    assert json.loads((out / "network.json").read_text())["model"] == "RepVGG_32x32_nv12.bin"


def test_the_most_sensitive_operators_are_in_int16(tmp_path, tiny, photos):
    """The settings name two operators of the file, and README.txt says what that is worth."""
    model, preprocessing = tiny(num_classes=7), replace(RGB, size=32)
    equivalence.randomize(model, equivalence.random_images(model, 32))  # as uneven as trained ones
    model, out = models.to_deploy(model), tmp_path / "kit"
    rdk.write_kit(model, preprocessing, photos, out, count=4, int16=2)
    settings = (out / "RepVGG_A0_config.yaml").read_text()
    chosen = ast.literal_eval(settings.partition("node_info: ")[2].partition("}}")[0] + "}}")
    int16 = {"ON": "BPU", "InputType": "int16", "OutputType": "int16"}
    assert len(chosen) == 2 and all(value == int16 for value in chosen.values())
    kinds = {node.name: node.op_type for node in onnx.load(out / "RepVGG-A0.onnx").graph.node}
    assert {kinds[name] for name in chosen} <= {"Conv", "GlobalAveragePool"}
    assert "2 operators are computed in int16" in (out / "README.txt").read_text()
    (before, after) = re.findall(r"([\d.]+) dB", (out / "README.txt").read_text())
    assert float(after) > float(before) > 5


def test_sensitivity_is_measured(tiny, images):
    """The operator whose output has a range that is far too wide costs most."""
    model = models.to_deploy(tiny())
    model.eval()
    network = to_onnx(model, (64, 64), 13, "batch", "data", "output")
    names = qdq.activations(network)
    bounds = {
        name: (min(x.min() for x in values), max(x.max() for x in values))
        for name, values in zip(
            names, zip(*graph_of.run(network, images, names), strict=True), strict=True
        )
    }
    worst = names[3]
    bounds[worst] = (bounds[worst][0], 100 * bounds[worst][1])
    expected = graph_of.logits(network, images)
    found = sensitivity.most_sensitive(network, bounds, images, expected, 1)
    producers = {name: node for node in network.graph.node for name in node.output}
    relu = producers[worst]
    neighbours = {producers[relu.input[0]].name} | {
        node.name for node in graph_of.consumers(network)[worst]
    }
    assert set(found.nodes) <= neighbours and found.after > found.before + 5
    convolutions = [node for node in network.graph.node if node.op_type == "Conv"]
    count = len(convolutions) + 1  # and the pool, of which the last layer reads
    every = sensitivity.most_sensitive(network, bounds, images, expected, count)
    assert len(set(every.nodes)) == count
    with pytest.raises(UserError, match=f"--int16 {count + 1}: the network has {count} operators"):
        sensitivity.most_sensitive(network, bounds, images, expected, count + 1)


# family -> an architecture and the names of its files
NAMES = {
    "RepVGG": ("RepVGGB1g4", "RepVGG-B1g4.onnx", "RepVGG_B1g4_config.yaml"),
    "RepVGGplus": ("RepVGGplusL2pse", "RepVGGplus-L2pse.onnx", "RepVGGplus_L2pse_config.yaml"),
    "MobileOne": ("MobileOneS4", "mobileone_s4.onnx", "MobileOne_S4_config.yaml"),
    "RepViT": ("RepViTM0_9", "repvit_m0_9.onnx", "RepViT_m0_9_config.yaml"),
    "RepGhost": ("RepGhost100", "repghostnet_100.onnx", "RepGhost_100.yaml"),
    "FastViT": ("FastViTT8", "fastvit_t8.onnx", "FastViT_T8_config.yaml"),
    "RepLKNet": ("RepLKNet31B", "replknet_31b.onnx", "RepLKNet_31B_config.yaml"),
}


@pytest.mark.parametrize("family", NAMES)
def test_a_whole_kit_of_every_family(family, tmp_path, photos, rng):
    """With small networks, whose files compute what the networks do, equalized for int8."""
    arch, onnx_name, config = NAMES[family]
    model, preprocessing = SMALL[family](), replace(RGB, size=64)
    model.arch = arch
    images = rng.standard_normal((4, 3, 64, 64)).astype(np.float32)
    equivalence.randomize(model, images)
    model, out = models.to_deploy(model), tmp_path / "kit"
    model.arch = arch
    rdk.write_kit(model, preprocessing, photos, out, count=4)
    settings = (out / config).read_text()
    assert f"onnx_model: './{onnx_name}'" in settings and "march: 'bayes-e'" in settings
    assert len(list((out / "calibration_data_rgb_f32").iterdir())) == 4
    session = onnxruntime.InferenceSession(out / onnx_name)
    model.eval()
    expected = model(mge.Tensor(images[:1])).numpy()
    (found,) = session.run(None, {"data": images[:1]})
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()


def test_every_architecture_has_names():
    for arch in models.list_models():
        assert rdk.names_of(arch, 224)["onnx"].endswith(".onnx")


def test_the_kit_of_a_repvit_that_expects_bgr(tmp_path, photos, rng):
    """At 32 px, with BaseCls's preprocessing: order and values follow it."""
    model = RepViT((16, 16, 24, 24), (1, 1, 1, 1), num_classes=5)
    model.arch = "RepViTM0_9"
    equivalence.randomize(model, rng.standard_normal((2, 3, 32, 32)).astype(np.float32))
    model = models.to_deploy(model)
    out = tmp_path / "kit"
    rdk.write_kit(model, replace(BASECLS, size=32), photos, out, count=1)
    settings = (out / "RepViT_m0_9_config.yaml").read_text()
    assert "input_type_train: 'bgr'" in settings and "debug_mode" not in settings
    assert "mean_value: 103.53 116.28 123.675\n" in settings
    assert "scale_value: 0.01742919 0.017507 0.01712475\n" in settings
    (file,) = (out / "calibration_data_bgr_f32").iterdir()
    image = cv2.imread(str(next(photos.rglob("*00.png"))))
    data = np.fromfile(file, np.float32).reshape(1, 3, 32, 32)
    height, width = 36, 36 * image.shape[1] // image.shape[0]  # short side 36, centre crop 32
    if width < height:
        height, width = 36 * image.shape[0] // image.shape[1], 36
    middle = cv2.resize(image, (width, height))[height // 2 - 16 :, width // 2 - 16 :][:32, :32]
    assert np.array_equal(data[0], middle.transpose(2, 0, 1))
    session = onnxruntime.InferenceSession(out / "repvit_m0_9.onnx")
    assert session.run(["output"], {"data": data})[0].shape == (1, 5)


def test_bad_input_leaves_nothing(tmp_path, tiny, photos, monkeypatch):
    model = models.to_deploy(tiny())
    before = sorted(tmp_path.rglob("*"))

    def refused(message, folder=photos, out=tmp_path / "kit", preprocessing=RGB):
        with pytest.raises(UserError, match=message):
            rdk.write_kit(model, replace(preprocessing, size=32), folder, out)
        assert sorted(tmp_path.rglob("*")) == before

    with pytest.raises(UserError, match="the size is 33, but NV12 .*; give --size 32 or 34"):
        rdk.write_kit(model, replace(RGB, size=33), photos, tmp_path / "kit")
    refused("there is no folder .*none", tmp_path / "none")
    refused("is not empty", out=photos)
    refused("is not empty", out=photos / "a" / "ILSVRC2012_val_00000000.png")
    (tmp_path / "photos2").mkdir()
    before = sorted(tmp_path.rglob("*"))
    refused("there are no images in .*photos2", tmp_path / "photos2")
    for number in range(3):
        cv2.imwrite(f"{tmp_path}/photos2/{number}.png", np.full((40, 40, 3), 90 * number, np.uint8))
    before = sorted(tmp_path.rglob("*"))
    refused("each of the 3 images for calibration is of one colour", tmp_path / "photos2")
    (photos / "b" / "z.jpg").write_bytes(b"no image")
    before = sorted(tmp_path.rglob("*"))
    refused("z.jpg is corrupt")
