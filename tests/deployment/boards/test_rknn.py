"""The Rockchip kit: its files, and its conversion with onnxruntime as the toolkit."""

import json
import os
import shutil
import sys
from dataclasses import replace

import models

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest

from data.decoding import decode
from data.folders import image_files
from data.transforms import BASECLS, TORCHVISION
from deployment.boards import rknn
from tests.deployment.boards.programs import RUNTIMES, run
from utils import UserError

SMALL = replace(TORCHVISION, size=32)


@pytest.fixture
def network(tiny):
    return models.to_deploy(tiny(num_classes=3))


@pytest.fixture
def photos(image_folder):
    return image_folder(train=2, val=3, side=70)


@pytest.fixture
def test_images(photos):
    images = image_files(photos / "val")
    return images, [i // 3 for i in range(len(images))]


def test_the_kit(network, photos, test_images, tmp_path):
    out = tmp_path / "kit"
    listed = rknn.write_kit(
        network, SMALL, photos / "train", out, 4, {"form": "deploy"}, test_images
    )
    assert sorted(listed) == sorted(path.name for path in out.iterdir())
    proto = onnx.load(out / "RepVGGA0.onnx")
    assert [opset.version for opset in proto.opset_import] == [12]
    (entry,), (result,) = proto.graph.input, proto.graph.output
    assert (entry.name, result.name) == ("input", "output")
    dims = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in (entry, result)]
    assert dims == [[1, 3, 32, 32], [1, 3]]

    images = image_files(photos / "train")
    chosen = [images[i * len(images) // 4] for i in range(4)]
    lines = (out / "dataset.txt").read_text().splitlines()
    assert len(lines) == 4
    for line, source in zip(lines, chosen, strict=True):
        assert line.startswith("calibration/") and line.endswith(f"_{source.stem}.png")
        pixels = cv2.imread(str(out / line))
        assert np.array_equal(pixels, SMALL.evaluation_crop(decode(source)))
    labels = [line.split(" ") for line in (out / "val_label.txt").read_text().splitlines()]
    assert [int(label) for _, label in labels] == [0] * 3 + [1] * 3 + [2] * 3
    assert [name for name, _ in labels] == sorted(p.name for p in (out / "evaluation").iterdir())
    readme = (out / "README.txt").read_text()
    for text in (
        "convert.py --target rk3588",
        "9 images",
        "4 images",
        "input is RGB, uint8 [1, 32",
    ):
        assert text in readme


def test_the_conversion(network, photos, test_images, tmp_path):
    out = tmp_path / "kit"
    rknn.write_kit(network, SMALL, photos / "train", out, 4, None, test_images)
    report = tmp_path / "report.json"
    flags = ["--target", "rk3568", "--algorithm", "kl_divergence", "--json", report]
    status, said, err = run(out / "convert.py", *flags, runtime="toolkit")
    assert status == 0, err
    calls = json.loads((out / "calls.json").read_text())
    assert calls == {
        "config": {
            "mean_values": [[123.675, 116.28, 103.53]],
            "std_values": [[58.395, 57.12, 57.375]],
            "target_platform": "rk3568",
            "quantized_algorithm": "kl_divergence",
            "quant_img_RGB2BGR": False,
        },
        "load_onnx": ["RepVGGA0.onnx", ["input"], [[1, 3, 32, 32]]],
        "build": [True, 4],
    }
    assert (out / "RepVGGA0.rknn").read_bytes() == (out / "RepVGGA0.onnx").read_bytes()
    session = onnxruntime.InferenceSession(out / "RepVGGA0.onnx")
    images, labels = test_images
    logits = [session.run(None, {"input": SMALL.evaluation(decode(x))[None]})[0] for x in images]
    right = sum(int(x.argmax()) == y for x, y in zip(logits, labels, strict=True))
    found = json.loads(report.read_text())
    assert found.pop("build_seconds") >= 0 and found.pop("seconds_per_image") >= 0
    top1 = round(100 * right / 9, 2)
    assert found == {
        "network": "RepVGGA0", "target": "rk3568", "ranges": "kl_divergence",
        "toolkit": None, "images": 9, "float_top1": top1, "top1": top1, "agreement": 100.0,
    }  # fmt: skip
    assert f"float_top1: {top1}\n" in said


def said_to_be_int8(source, file, **changed):
    """A copy of an ONNX file with the metadata of those of quantize.py --target rknn."""
    proto = onnx.load(source)
    proto.metadata_props.add(key="quantization", value='{"target": "rknn"}')
    for entry in proto.metadata_props:
        entry.value = changed.get(entry.key, entry.value)
    onnx.save(proto, file)
    return file


def test_a_quantized_file_is_not_quantized_again(network, photos, test_images, tmp_path):
    out = tmp_path / "kit"
    said = {"arch": "RepVGGA0", "classes": list("abcdef")}
    rknn.write_kit(network, replace(BASECLS, size=32), photos / "train", out, 4, said, test_images)
    int8 = said_to_be_int8(out / "RepVGGA0.onnx", tmp_path / "int8.onnx")
    flags = ["--qdq", int8, "--evaluate", 0, "--out", tmp_path / "a.rknn"]
    status, said, err = run(out / "convert.py", *flags, runtime="toolkit")
    assert status == 0 and "top1" not in said and (tmp_path / "a.rknn").is_file(), err
    calls = json.loads((out / "calls.json").read_text())
    assert calls["build"][0] is False and calls["config"]["quant_img_RGB2BGR"] is True
    assert calls["load_onnx"][0] == str(int8)
    status, _, err = run(out / "convert.py", "--evaluate", 2, runtime="toolkit", REFUSE="1")
    assert status == 2 and err.endswith("build failed; the toolkit's message is above\n")
    status, _, err = run(out / "convert.py", "--target", "rk9", runtime="toolkit")
    assert status == 2 and err.endswith(
        "error: config failed: ValueError: Invalid target_platform 'rk9'!\n"
    )
    for method in ("load_onnx", "build", "export_rknn", "init_runtime", "inference"):
        status, _, err = run(out / "convert.py", runtime="toolkit", RAISE=method)
        assert status == 2 and err.endswith(f"error: {method} failed: RuntimeError: no {method}\n")
    status, _, err = run(out / "convert.py")
    assert status == 2 and "cannot import rknn-toolkit2" in err and "Traceback" not in err
    hidden = ("cv2", "onnxruntime")  # as for the system's Python, not the environment's
    for name in hidden:
        (tmp_path / "hidden" / name).mkdir(parents=True)
        (tmp_path / "hidden" / name / "__init__.py").write_text("raise ImportError('none')")
    status, _, err = run(out / "convert.py", PYTHONPATH=str(tmp_path / "hidden"))
    assert status == 2 and "cannot import rknn-toolkit2 (none)" in err and "Traceback" not in err
    others = {"arch": "RepVGGA1", "classes": '["a"]', "preprocessing": '{"color": "RGB"}'}
    for key, value in others.items():
        said_to_be_int8(out / "RepVGGA0.onnx", tmp_path / "other.onnx", **{key: value})
        flags = ["--qdq", tmp_path / "other.onnx", "--evaluate", 0]
        status, _, err = run(out / "convert.py", *flags, runtime="toolkit")
        key = "color" if key == "preprocessing" else key
        assert status == 2 and f"other.onnx has {key} " in err and "of this kit has" in err
    flags = ["--qdq", out / "RepVGGA0.onnx"]
    status, _, err = run(out / "convert.py", *flags, runtime="toolkit")
    assert status == 2 and "RepVGGA0.onnx is no int8 file for Rockchip; write one by" in err
    (tmp_path / "best.pkl").write_bytes(b"no network")
    flags = ["--qdq", tmp_path / "best.pkl"]
    status, _, err = run(out / "convert.py", *flags, runtime="toolkit")
    assert status == 2 and "best.pkl is no ONNX file with one input; write it by" in err
    status, _, err = run(out / "convert.py", "--evaluate", -1)
    assert status == 2 and "--evaluate must be at least 0" in err
    (out / "RepVGGA0.onnx").rename(tmp_path / "moved.onnx")
    flags = ["--qdq", said_to_be_int8(tmp_path / "moved.onnx", tmp_path / "int8.onnx")]
    status, _, err = run(out / "convert.py", *flags, runtime="toolkit")
    assert status == 2 and "RepVGGA0.onnx is no ONNX file; copy it from the kit" in err
    (tmp_path / "moved.onnx").rename(out / "RepVGGA0.onnx")
    evaluated = next((out / "evaluation").iterdir())
    evaluated.rename(tmp_path / "moved.png")
    status, _, err = run(out / "convert.py", runtime="toolkit")
    assert status == 2 and f"cannot read evaluation/{evaluated.name}; copy it" in err
    labels = (out / "val_label.txt").read_text()
    for damaged in ("", labels + "photo.png\n", labels + "photo.png pear\n"):
        (out / "val_label.txt").write_text(damaged)
        status, _, err = run(out / "convert.py", runtime="toolkit")
        assert status == 2 and "val_label.txt has other lines than NAME LABEL, or none" in err
    content = json.loads((out / "network.json").read_text())
    del content["mean"]
    (out / "network.json").write_text(json.dumps(content))
    status, _, err = run(out / "convert.py", runtime="toolkit")
    assert status == 2 and "network.json has no mean; copy all files of one kit" in err
    (out / "network.json").unlink()
    status, _, err = run(out / "convert.py", runtime="toolkit")
    assert status == 2 and "network.json; copy it from the kit" in err
    for flag, path, said in (
        ("--qdq", "none.onnx", "there is no none.onnx; write it by quantize.py --target rknn"),
        ("--json", "none/a.json", "there is no folder none to write none/a.json to"),
        ("--json", ".", "error: . is a folder; give the name of a file in it"),
        ("--out", str(out), "is a folder; give the name of a file in it"),
        ("--json", str(out / "dataset.txt"), "dataset.txt would replace another file"),
        ("--out", str(out / "RepVGGA0.onnx"), "RepVGGA0.onnx would replace another file"),
    ):
        status, _, err = run(out / "convert.py", flag, path, runtime="toolkit")
        assert status == 2 and said in err


def test_what_the_kit_refuses(network, photos, test_images, tmp_path):
    with pytest.raises(UserError, match="is the calibration image"):
        rknn.write_kit(network, SMALL, photos, tmp_path / "kit", 15, None, test_images)
    with pytest.raises(UserError, match="there are no images in"):
        (tmp_path / "empty").mkdir()
        rknn.write_kit(network, SMALL, tmp_path / "empty", tmp_path / "kit")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "photos"]


def test_at_most_a_thousand_images_are_simulated(
    network, photos, test_images, tmp_path, monkeypatch
):
    monkeypatch.setattr(rknn, "EVALUATED", 3)
    rknn.write_kit(network, SMALL, photos / "train", tmp_path / "kit", 4, None, test_images)
    lines = (tmp_path / "kit" / "val_label.txt").read_text().splitlines()
    assert [line.split(" ")[1] for line in lines] == ["0", "1", "2"]


def test_the_benchmark_runs_every_conversion(
    command, network, photos, test_images, tmp_path, monkeypatch
):
    out = tmp_path / "kit"
    rknn.write_kit(network, SMALL, photos / "train", out, 4, None, test_images)
    said_to_be_int8(out / "RepVGGA0.onnx", out / "a-int8.onnx")
    path = os.pathsep.join(map(str, (RUNTIMES / "toolkit", RUNTIMES)))
    monkeypatch.setenv("PYTHONPATH", path)
    flags = ["rknn", "--kit", out, "--python", sys.executable, "--images", 3, "--json"]
    status, said, err = command("benchmark", *flags, "--algorithms", "normal", "mmse")
    assert status == 0, err
    rows = json.loads(said)
    assert [row["ranges"] for row in rows] == ["normal", "mmse", "a-int8.onnx"]
    assert all((row["images"], row["agreement"]) == (3, 100) for row in rows)
    monkeypatch.setenv("REFUSE", "1")
    status, _, err = command("benchmark", *flags)
    assert status == 2 and "--algorithm normal: convert.py: error: build failed" in err
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("convert.py", "val_label.txt"):
        shutil.copyfile(out / name, broken / name)
    for folder, python, message in (
        (photos, sys.executable, "is no kit with images to simulate"),
        (broken, sys.executable, "is no kit with images to simulate"),
        (out, "none/python", "cannot run none/python: No such file"),
    ):
        status, _, err = command("benchmark", "rknn", "--kit", folder, "--python", python)
        assert status == 2 and message in err
