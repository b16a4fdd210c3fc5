"""quantize.py: reports, files and errors."""

import json
import shutil
from argparse import Namespace

import models
from models import equivalence

import cv2
import megengine as mge
import numpy as np
import onnx
import onnxruntime
import pytest

from data.transforms import Preprocessing
from deployment import network, network_file
from deployment.int8 import floor, graph, quantization, weights
from deployment.int8.dialects import DIALECTS
from tests.deployment.int8.tensorrt_rules import RULES
from tests.support import write_image_folder
from training import qat
from training.distributed.process_group import Workers
from weights import checkpoint, loading


def warning(images):
    return (
        f"warning: {images} calibration images are few, and the ranges of the "
        "activations a matter of chance; give 16 or more, better 64, by --calibration and "
        "--images\n"
    )


@pytest.fixture
def trained(small_repvgg_a0, tmp_path):
    """A checkpoint in train form, of a RepVGGA0 with few blocks and channels."""
    model = models.create("RepVGGA0", 2)
    noise = np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)
    equivalence.randomize(model, noise)
    path = tmp_path / "best.pkl"
    checkpoint.save(checkpoint.of_model(model, Preprocessing(size=32), ["apple", "pear"]), path)
    return path


@pytest.fixture
def photos(tmp_path):
    return write_image_folder(tmp_path / "photos", ("pear", "apple"), train=6, val=3)


def test_report_and_files(command, trained, photos, tmp_path):
    out = tmp_path / "out" / "a0-int8.onnx"
    flags = ["--model", trained, "--calibration", photos / "train", "--out", out, "--images", 10]
    status, said, err = command("quantize", *flags, "--data", photos, "--crop-ratio", 1, "--json")
    said = json.loads(said)
    assert (status, err) == (0, warning(10))
    assert {path.name for path in out.parent.iterdir()} == {"a0-int8.onnx", "a0-int8.png"}
    assert cv2.imread(said["chart"]).shape[0] > 100
    assert said["calibration_images"] == 10 and said["measured_on"] == f"6 images of {photos}"
    assert set(said["clips_sqnr_db"]) == {"minmax", "percentile", "mse", "kl"}
    assert said["clip"] == max(said["clips_sqnr_db"], key=said["clips_sqnr_db"].get)
    rows = {row["name"]: row for row in said["networks"]}
    assert rows["float"]["agreement"] == 100 and rows["float"]["sqnr"] is None
    kinds = [f"W8{a} per-{w}" for w in ("tensor", "channel") for a in ("", "A8")]
    kinds += [f"W8A8 per-{kind}" for kind in ("tensor, plain", "channel, plain")]
    assert set(rows) == {"float", *kinds, "W8A8 per-channel, full range"}
    for row in rows.values():
        assert row["top1"] in (0, *(100 * n / 6 for n in range(7))) and row["top5"] == 100

    # the file says all that the float one said, and predict.py and network.py run it as it is
    noted = network_file.properties({p.key: p.value for p in onnx.load(out).metadata_props})
    assert noted["source_sha256"] and noted["classes"] == ["apple", "pear"]
    assert (
        noted["preprocessing"]["crop_ratio"] == 1
        and noted["quantization"]["calibration_images"] == 10
        and noted["quantization"]["calibration_folder"] == "train"
    )
    int8 = network.load(out)
    assert int8.arch == "RepVGGA0" and int8.preprocessing.crop_ratio == 1
    image = next(photos.rglob("val/apple/*.jpg"))
    status, found, err = command("predict", image, "--model", out, "--json")
    found = {p["name"]: p["probability"] for p in json.loads(found)["images"][0]["predictions"]}
    status, told, err = command("predict", image, "--model", trained, "--json")
    told = {p["name"]: p["probability"] for p in json.loads(told)["images"][0]["predictions"]}
    assert found.keys() == told.keys() == {"apple", "pear"}
    assert found["apple"] == pytest.approx(told["apple"], abs=0.15)


def test_text_and_onnx_input(command, trained, photos, tmp_path):
    float_onnx = tmp_path / "float.onnx"
    assert command("export", "--model", trained, "--out", float_onnx, "--batch", 1)[0] == 0
    (tmp_path / "names.txt").write_text("Apfel\nBirne\n")
    flags = ["--model", float_onnx, "--calibration", photos, "--weights", "per-tensor"]
    flags += ["--class-names", tmp_path / "names.txt"]
    status, said, err = command("quantize", *flags, "--clip", "mse", "--crop-ratio", 1)
    assert (status, err) == (0, "")
    written = network.load(tmp_path / "float-int8.onnx")
    assert written.classes == ["Apfel", "Birne"] and "mean: 123.675 116.28 103.53 (the" in said
    noted = onnx.load(tmp_path / "float-int8.onnx").metadata_props
    assert (
        "--crop-ratio"
        in network_file.properties({p.key: p.value for p in noted})["origins"].values()
    )
    lines = said.splitlines()
    rows = [lines.pop(0) for _ in range(8)]
    assert rows[5:7] == ["resize backend: opencv (the file)", "crop ratio: 1.0 (--crop-ratio)"]
    assert lines[0] == "architecture:  RepVGGA0"
    assert lines[1] == f"calibration:   18 images of {photos}, crop ratio 1.0"
    assert "mse; SQNR of the logits there: mse" in said and "per-tensor" in lines[-3]
    assert network.load(tmp_path / "float-int8.onnx").preprocessing.crop_ratio == 1
    assert (tmp_path / "float-int8.png").is_file()
    assert "measured on:   the calibration images" in said


def test_a_checkpoint_can_be_quantized_for_another_size(command, trained, photos, tmp_path):
    """As a kit of that --size needs it; the images of an exported file have their own."""
    flags = [
        "--calibration",
        photos,
        "--clip",
        "minmax",
        "--images",
        2,
        "--out",
        tmp_path / "b.onnx",
    ]
    assert command("quantize", "--model", trained, *flags, "--size", 64)[0] == 0
    assert network.load(tmp_path / "b.onnx").size == (64, 64)
    assert command("export", "--model", trained, "--out", tmp_path / "a.onnx")[0] == 0
    status, _, err = command("quantize", "--model", tmp_path / "a.onnx", *flags, "--size", 64)
    assert status == 2 and "a.onnx takes images of 32 x 32 only; leave out --size, or" in err


def test_full_range(command, trained, photos, tmp_path):
    flags = ["--model", trained, "--calibration", photos, "--images", 2, "--clip", "mse", "--json"]
    pairs = {}
    for option in ((), ("--full-range",)):
        out = tmp_path / "int8.onnx"
        status, said, err = command("quantize", *flags, "--out", out, *option)
        assert (status, err) == (0, warning(2)) and json.loads(said)["full_range"] == bool(option)
        tensors = map(onnx.numpy_helper.to_array, onnx.load(out).graph.initializer)
        kernels = [t for t in tensors if t.dtype == np.int8 and t.ndim == 4]
        pairs[option] = max(map(weights.largest_pair, kernels))
    assert pairs[()] <= weights.LARGEST_PAIR < pairs["--full-range",]
    status, _, err = command("quantize", *flags, "--full-range", "--weights", "per-tensor")
    assert status == 2 and "--full-range is for --weights per-channel" in err


@pytest.mark.parametrize("target", DIALECTS)
def test_a_file_for_each_target(target, command, trained, photos, tmp_path):
    out = tmp_path / f"{target}.onnx"
    flags = ["--model", trained, "--calibration", photos, "--images", 16, "--clip", "minmax"]
    status, said, err = command("quantize", *flags, "--target", target, "--out", out, "--json")
    assert (status, err) == (0, "") and json.loads(said).get("target", "onnxruntime") == target
    written = onnx.load(out)
    noted = network_file.properties({p.key: p.value for p in written.metadata_props})[
        "quantization"
    ]
    assert noted.get("target", "onnxruntime") == target
    kinds = {t.data_type for t in written.graph.initializer}
    assert (onnx.TensorProto.UINT8 in kinds) == (target != "tensorrt")
    assert (onnx.TensorProto.INT32 in kinds) == (target != "tensorrt")
    if target == "tensorrt":
        assert {text: check(written) for text, check in RULES.items() if check(written)} == {}
    batch = written.graph.input[0].type.tensor_type.shape.dim[0]
    assert (batch.dim_value == 1) == (target == "rknn")
    tensors = map(onnx.numpy_helper.to_array, written.graph.initializer)
    pairs = [weights.largest_pair(t) for t in tensors if t.dtype == np.int8 and t.ndim == 4]
    assert (max(pairs) > weights.LARGEST_PAIR) == (target in ("tensorrt", "rknn"))
    image = next(photos.rglob("val/apple/*.jpg"))
    assert command("predict", image, "--model", out)[0] == 0


def test_the_runtime_must_read_the_opset(command, trained, photos, tmp_path):
    float_onnx = tmp_path / "float.onnx"
    assert command("export", "--model", trained, "--out", float_onnx)[0] == 0
    newer = onnx.load(float_onnx)
    newer.opset_import[0].version = 20
    onnx.save(newer, float_onnx)
    flags = ["--model", float_onnx, "--calibration", photos, "--target", "rknn"]
    status, _, err = command("quantize", *flags)
    assert status == 2 and "has ONNX opset 20, but RKNN-Toolkit2 reads 13 to 19" in err


def test_a_floor_keeps_layers_in_float(command, trained, photos, tmp_path):
    out = tmp_path / "int8.onnx"
    flags = ["--model", trained, "--calibration", photos / "train", "--images", 12, "--out", out]
    flags += ["--clip", "minmax", "--json"]
    (row,) = [row for row in json.loads(command("quantize", *flags)[1])["networks"]
              if row["name"] == "W8A8 per-channel"]  # fmt: skip
    floor = row["sqnr"] + 1
    status, said, _ = command("quantize", *flags, "--min-sqnr", floor)
    said = json.loads(said)
    kept = said["floor"]["in_float"]
    assert status == 0 and kept and said["floor"]["reached"] >= floor
    assert kept == [name for name in said["floor"]["sensitivity_db"] if name in kept]
    assert {*said["floor"]["latency_ms"]} == {"float", "int8", "mixed"}
    assert said["networks"][-1]["name"] == f"W8A8 per-channel, {len(kept)} in float"
    assert said["networks"][-1]["sqnr"] == pytest.approx(said["floor"]["reached"], abs=0.1)
    written = onnx.load(out)
    noted = network_file.properties({p.key: p.value for p in written.metadata_props})[
        "quantization"
    ]
    assert noted["in_float"] == sorted(kept)
    plain = {tensor.name for tensor in written.graph.initializer}
    layers = [node for node in written.graph.node if node.op_type in ("Conv", "Gemm")]
    assert {node.name for node in layers if node.input[1] in plain} == {*kept}
    assert {*said["floor"]["chosen"]} <= {*kept}


def test_a_floor_that_cannot_be_held_and_one_that_holds(command, trained, photos, tmp_path):
    out = tmp_path / "int8.onnx"
    flags = ["--model", trained, "--calibration", photos / "train", "--images", 4, "--out", out]
    flags += ["--clip", "minmax"]
    status, said, err = command("quantize", *flags, "--min-sqnr", 500)
    assert (status, said.count("in float")) == (1, 0) and not out.exists()
    assert "no file was written: even with" in err and "below --min-sqnr 500; fine-tune" in err
    flags += ["--data", photos, "--max-drop", 100]
    status, said, _ = command("quantize", *flags)
    assert status == 0 and "in float:      no layer; int8 holds the floor" in said


@pytest.fixture
def hard(small_repvgg_a0, tmp_path):
    """A checkpoint and data whose classes it knows in float, and many of which it mistakes in int8.

    The first layer has huge weights for a colour that is absent in all images, and so few steps for
    the others.
    """
    rng = np.random.default_rng(0)
    preprocessing = Preprocessing("BGR", mean=(128.0,) * 3, std=(64.0,) * 3, size=32)
    model = models.create("RepVGGA0", 2)
    images = rng.integers(0, 256, (64, 8, 8, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    images[..., 0] = 128
    inputs = np.stack([preprocessing.evaluation(image) for image in images])
    equivalence.randomize(model, inputs)
    for name, parameter in model.named_parameters():
        if name.startswith("stage0.") and parameter.ndim == 4:
            kernel = parameter.numpy().copy()
            kernel[:, 0] *= 400
            parameter[:] = kernel
    model.eval()
    logits = model(mge.Tensor(inputs)).numpy()
    model.linear.bias[:] -= mge.Tensor([np.median(logits[:, 0] - logits[:, 1]), 0])
    classes = model(mge.Tensor(inputs)).numpy().argmax(1)
    for number, (image, found) in enumerate(zip(images, classes, strict=True)):
        part = f"test/{'ab'[found]}" if number < 48 else "few"
        (tmp_path / "hard" / part).mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "hard" / part / f"{number}.png"), image)
    path = tmp_path / "hard.pkl"
    checkpoint.save(checkpoint.of_model(model, preprocessing, ["a", "b"]), path)
    return path, tmp_path / "hard"


def test_a_drop_of_accuracy_keeps_layers_in_float(command, hard, tmp_path):
    path, data = hard
    out = tmp_path / "int8.onnx"
    flags = ["--model", path, "--calibration", data / "few", "--data", data, "--out", out]
    flags += ["--clip", "minmax", "--json"]
    rows = {row["name"]: row for row in json.loads(command("quantize", *flags)[1])["networks"]}
    assert rows["float"]["top1"] == 100 and rows["W8A8 per-channel"]["top1"] < 95
    status, said, _ = command("quantize", *flags, "--max-drop", 3)
    said = json.loads(said)
    held = said["floor"]
    assert status == 0 and held["in_float"][0].startswith("stage0")
    assert len(held["in_float"]) < len(held["sensitivity_db"])
    last = said["networks"][-1]
    assert last["name"] == f"W8A8 per-channel, {len(held['in_float'])} in float"
    assert last["top1"] >= 97 and held["reached"] == pytest.approx(last["top1"] - 100)
    assert held["reached_unit"] == "points of top-1 gained over float"


def test_a_drop_that_is_too_large_is_said(hard, monkeypatch, capsys):
    none = floor.Outcome(None, ["a", "b"], {}, -1.5, False, 9)
    monkeypatch.setattr(floor, "hold", lambda *_: none)
    monkeypatch.setattr(graph, "logits", lambda *_: None)
    args = Namespace(min_sqnr=None, max_drop=1.0)
    quantized = Namespace(equalized=None)
    assert quantization.hold_floor(args, quantized, None, 80.0, list) is none
    assert "even with 2 layers in float and one in int8, top-1 drops by 1.50 points, more than " \
        "--max-drop 1; fine-tune" in capsys.readouterr().err  # fmt: skip


def test_a_dead_map_is_valid_json(command, trained, photos, tmp_path):
    """A map that is 0 on all images has no noise."""
    found = checkpoint.read(trained)
    for name, value in found.state_dict.items():
        if name.startswith("stage1.") and name.endswith("bn.bias"):
            value[...] = -1000
    checkpoint.save(found, trained)
    flags = ["--model", trained, "--calibration", photos, "--images", 16, "--clip", "minmax"]
    status, said, err = command("quantize", *flags, "--out", tmp_path / "a.onnx", "--json")
    assert (status, err) == (0, "") and "Infinity" not in said and "NaN" not in said
    assert None in json.loads(said)["layers_sqnr_db"].values()


def test_what_a_floor_needs(command, trained, photos):
    for flags, message in (
        (["--min-sqnr", 10], "--max-drop and --min-sqnr need --calibration"),
        (["--max-drop", 1, "--calibration", photos], "--max-drop needs --data with labels"),
        (["--full-range", "--target", "rknn", "--calibration", photos], "--full-range is for run"),
        (["--max-drop", 1, "--min-sqnr", 10], "not allowed with argument --max-drop"),
        (["--images", 9], "--clip and --images are for a --calibration"),
        (["--calibration", photos, "--val-list", "a.txt"], "--val-list needs --data"),
    ):
        status, _, err = command("quantize", "--model", trained, *flags)
        assert status == 2 and message in err


def test_bad_input_leaves_nothing(command, trained, photos, tmp_path, monkeypatch):
    float_onnx, branches = tmp_path / "float.onnx", tmp_path / "branches.onnx"
    old, int8 = tmp_path / "old.onnx", tmp_path / "int8.onnx"
    half, maps = tmp_path / "half.onnx", tmp_path / "maps.onnx"
    common = ["export", "--model", trained, "--out"]
    assert command(*common, half, "--half")[0] == 0
    assert command(*common, maps, "--features")[0] == 0
    assert command(*common, float_onnx)[0] == 0
    assert command(*common, branches, "--keep-branches")[0] == 0
    assert command(*common, old, "--opset", 11)[0] == 0
    flags = ["--calibration", photos / "train", "--images", 2, "--clip", "minmax", "--out", int8]
    assert command("quantize", "--model", float_onnx, *flags)[0] == 0

    broken = checkpoint.read(trained)
    next(iter(broken.state_dict.values())).flat[0] = np.nan
    checkpoint.save(broken, tmp_path / "nan.pkl")
    poisoned = onnx.load(float_onnx)
    tensor = poisoned.graph.initializer[0]
    value = onnx.numpy_helper.to_array(tensor).copy()
    value.flat[0] = np.inf
    tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
    onnx.save(poisoned, tmp_path / "inf.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    parted = {"save_as_external_data": True, "location": "parted", "size_threshold": 0}
    onnx.save(onnx.load(float_onnx), tmp_path / "parted.onnx", **parted)
    (tmp_path / "parted").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "grey").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "grey" / f"{i}.png"), np.full((40, 40, 3), 80 * i, np.uint8))
    before = sorted(tmp_path.rglob("*"))

    def refused(message, model=float_onnx, folder=photos / "train", *options):
        flags = ["--model", model, "--calibration", folder, "--out", tmp_path / "new.onnx"]
        status, out, err = command("quantize", *flags, *options)
        told = err.replace(warning(12), "").replace(warning(3), "")
        assert (status, out) == (2, "") and message in told and told.count("\n") == 1
        assert sorted(tmp_path.rglob("*")) == before

    refused("there is no folder", folder=tmp_path / "none")
    refused("there are no images in", folder=tmp_path / "empty")
    refused("each of the 3 images for calibration is of one colour", folder=tmp_path / "grey")
    refused("is quantized already", model=int8)
    refused("is in train form", model=branches)
    refused("has ONNX opset 11", model=old)
    refused("is in half precision; export it again without --half", model=half)
    refused("gives feature maps; export it again without --features", model=maps)
    refused("holds numbers that are not finite, or neg", model=tmp_path / "nan.pkl")
    refused("has weights that are no numbers, in", model=tmp_path / "inf.onnx")
    refused("is no ONNX file", model=tmp_path / "text.onnx")
    refused("has its weights in another file, which is missing", model=tmp_path / "parted.onnx")
    refused("there is no file", model=tmp_path / "none.onnx")
    status, _, err = command("quantize", "--model", tmp_path / "none.onnx")
    assert status == 2 and "there is no file" in err
    refused("which has no entries", float_onnx, photos, "--entry", "ema")
    refused("is of RepVGGA0, but RepVGGB0 was expected", float_onnx, photos, "--arch", "RepVGGB0")
    refused("does not end in .onnx", float_onnx, photos, "--out", tmp_path / "a.pkl")
    refused("is the file to read; give another", float_onnx, photos, "--out", float_onnx)
    # the same content under another name
    twin = photos / "val" / "pear" / "twin.jpg"
    twin.write_bytes((photos / "train" / "apple" / "0.jpg").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    refused("twin.jpg is the calibration image", float_onnx, photos / "train", "--data", photos)


def test_after_training_for_int8_no_images_are_needed(command, trained, photos, tmp_path):
    out = tmp_path / "int8.onnx"
    status, _, err = command("quantize", "--model", trained, "--out", out)
    assert status == 2 and "give images by --calibration" in err and not out.exists()

    found = checkpoint.read(trained)
    images = np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)
    quantized = qat.FakeQuantized(loading.load(found))
    quantized.calibrate([images], Workers())
    quantized.eval()
    found.activation_ranges = dict(quantized.ranges)
    checkpoint.save(found, trained)
    status, said, err = command("quantize", "--model", trained, "--out", out, "--data", photos)
    assert (status, err) == (0, "") and "W8A8 per-channel, trained" in said
    session = onnxruntime.InferenceSession(out)
    (logits,) = session.run(None, {"input": images})
    expected = quantized(mge.Tensor(images)).numpy()
    assert ((logits - expected) ** 2).sum() < 1e-3 * (expected**2).sum()  # 30 dB

    # files for several runtimes may lie beside each other
    assert command("quantize", "--model", trained, "--target", "rknn")[0] == 0
    assert trained.with_name(f"{trained.stem}-int8-rknn.onnx").is_file()
    assert command("quantize", "--model", trained, "--target", "tensorrt")[0] == 0
    other = trained.with_name(f"{trained.stem}-int8-tensorrt.onnx")
    types = {tensor.data_type for tensor in onnx.load(other).graph.initializer}
    assert onnx.TensorProto.INT8 in types and onnx.TensorProto.UINT8 not in types

    before = sorted(tmp_path.rglob("*"))
    flags = ["--model", trained, "--out", tmp_path / "new.onnx", "--data", tmp_path / "none"]
    status, _, err = command("quantize", *flags)
    assert status == 2 and "none" in err and sorted(tmp_path.rglob("*")) == before

    before = out.read_bytes()
    broken = photos / "val" / "pear" / "0.jpg"
    broken.write_bytes(b"no image")
    flags = ["--model", trained, "--out", out, "--data", photos]
    status, _, err = command("quantize", *flags, "--crop-ratio", 1)
    assert status == 2 and str(broken) in err and out.read_bytes() == before

    found.activation_ranges.pop("input")
    checkpoint.save(found, trained)
    status, _, err = command("quantize", "--model", trained, "--out", out)
    assert status == 2 and "has no range of input" in err


def test_images_are_not_replaced(command, trained, photos, tmp_path):
    """The chart has the name of the file, but for its end."""
    images = tmp_path / "images"
    images.mkdir()
    for number, file in enumerate(sorted((photos / "train").rglob("*.jpg"))):
        cv2.imwrite(str(images / f"{number}.png"), cv2.imread(str(file)))
    before = (images / "0.png").read_bytes()
    flags = ["--model", trained, "--calibration", images]
    status, _, err = command("quantize", *flags, "--out", images / "0.onnx")
    assert status == 2 and "0.png is the file to read; give another name by --out" in err
    assert (images / "0.png").read_bytes() == before and not (images / "0.onnx").exists()
    (tmp_path / "b.png").mkdir()
    status, _, err = command("quantize", *flags, "--out", tmp_path / "b.onnx")
    assert status == 2 and "b.png, which is to be written, is a folder" in err
    assert not (tmp_path / "b.onnx").exists()


def test_copies_of_an_image_count_once(command, trained, photos, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for number in range(20):
        shutil.copy(photos / "train/apple/0.jpg", images / f"{number}.jpg")
    flags = ["--model", trained, "--calibration", images, "--out", tmp_path / "a.onnx"]
    status, _, err = command("quantize", *flags)
    assert status == 0 and "warning: 1 different calibration images are few" in err


def test_the_folder_of_a_run_gives_its_name(command, trained, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command("quantize", "--model", ".", "--calibration", photos)[0] == 0
    assert (tmp_path / f"{tmp_path.name}-int8.onnx").is_file()
