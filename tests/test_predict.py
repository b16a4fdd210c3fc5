"""predict.py: what is in files, folders and URLs, by a network in any kind of file."""

import json
import threading
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import models

import cv2
import megengine as mge
import numpy as np
import onnx
import pytest

from data.decoding import decode
from data.transforms import BASECLS, Preprocessing
from deployment import input_format
from deployment.mge_export import export_mge
from deployment.onnx_export import export_onnx
from weights import checkpoint

CLASSES = ["apple", "pear", "plum", "quince", "Käse", "n02514041", "g"]
SHOWN = [*CLASSES[:5], "barracouta", "g"]  # ImageNet's identifiers become words
EXPECTS = replace(BASECLS, size=32)  # BGR


@pytest.fixture(autouse=True)
def small(small_repvgg_a0):
    mge.random.seed(0)


@pytest.fixture
def network(tmp_path):
    """A network in a checkpoint, and a function that gives its probabilities."""
    model = models.create("RepVGGA0", len(CLASSES))
    model.eval()

    def probabilities(path):
        logits = model(mge.Tensor(EXPECTS.evaluation(decode(path))[None])).numpy()[0]
        return np.exp(logits) / np.exp(logits).sum()

    probabilities.model = model
    probabilities.path = tmp_path / "best.pkl"
    checkpoint.save(checkpoint.of_model(model, EXPECTS, CLASSES), probabilities.path)
    return probabilities


@pytest.fixture
def photos(tmp_path, rng):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, shape in {"a.jpg": (50, 60, 3), "b.png": (70, 40, 4), "c.bmp": (8, 9)}.items():
        cv2.imwrite(str(folder / name), rng.integers(0, 256, shape, np.uint8))
    return folder


def test_a_folder_with_a_broken_image_among_the_others(command, network, photos, tmp_path):
    (photos / "aa.jpg").write_bytes(b"no image")
    out = tmp_path / "out"
    flags = ["--model", network.path, "--arch", "repvgg_a0", "--top", 3]
    status, text, err = command("predict", photos, *flags, "--json", "--save", out)
    result = json.loads(text)
    assert status == 2 and result["arch"] == "RepVGGA0"
    broken = result["images"].pop(1)
    assert broken["image"] == str(photos / "aa.jpg") and "aa.jpg is corrupt" in broken["error"]
    assert err.count("\n") == 1 and broken["error"] in err
    assert len(result["images"]) == 3
    for found, name in zip(result["images"], ("a.jpg", "b.png", "c.bmp"), strict=True):
        assert found["image"] == str(photos / name)
        expected = network(photos / name)
        order = np.argsort(-expected)[:3].tolist()
        assert [row["class"] for row in found["predictions"]] == order
        assert [row["name"] for row in found["predictions"]] == [SHOWN[i] for i in order]
        shown = [row["probability"] for row in found["predictions"]]
        assert np.allclose(shown, expected[order], rtol=1e-4)
    pictures = sorted(out.iterdir())
    assert [path.name for path in pictures] == [f"{x}-labelled.jpg" for x in "abc"]
    picture = cv2.imread(str(pictures[0]))
    assert picture.shape == (300, 360, 3)  # enlarged six times
    assert (photos / "a.jpg").exists()

    status, text, err = command("predict", photos, *flags)
    lines = text.splitlines()
    assert status == 2 and len(lines) == 3 * 4 and lines[0] == str(photos / "a.jpg")
    best = int(network(photos / "a.jpg").argmax())
    row = f"{network(photos / 'a.jpg')[best]:.2%}"
    assert lines[1].split()[:2] == [row, str(best)]


@pytest.mark.parametrize("kind", ["any.onnx", "three.onnx", "raw.onnx", "a.mge"])
def test_files_of_export_say_what_they_expect(command, network, photos, tmp_path, kind):
    """For any number of images at once, for three, for raw pixels in RGB; for MegEngine."""
    model = models.to_deploy(network.model)
    path = tmp_path / kind
    metadata = {"arch": "RepVGGA0", "classes": CLASSES, "num_classes": len(CLASSES)}
    common = {"size": 32, "metadata": metadata}
    if kind == "a.mge":
        export_mge(model, path, EXPECTS, **common)
    elif kind == "raw.onnx":
        file_input = input_format.raw_pixels(input_format.in_color_order(EXPECTS, "RGB"))
        export_onnx(model, path, EXPECTS, file_input=file_input, **common)
    else:
        export_onnx(model, path, EXPECTS, batch=3 if kind == "three.onnx" else "batch", **common)
    expected = network(photos / "a.jpg")
    status, text, err = command("predict", photos / "a.jpg", "--model", path, "--json")
    (found,) = json.loads(text)["images"]
    assert (status, err) == (0, "") and len(found["predictions"]) == 5
    for row in found["predictions"]:
        assert abs(row["probability"] - expected[row["class"]]) < 1e-5
        assert row["name"] == SHOWN[row["class"]]
    assert found["predictions"][0]["class"] == expected.argmax()
    status, _, err = command("predict", photos / "a.jpg", "--model", path, "--arch", "RepVGGA1")
    assert status == 2 and "is of RepVGGA0, but RepVGGA1 was expected" in err


def test_a_url(command, network, photos):
    handler = partial(SimpleHTTPRequestHandler, directory=photos)
    handler.log_message = lambda *_: None
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        status, out, err = command(
            "predict", f"{base}/a.jpg", f"{base}/none.jpg", "--model", network.path
        )
        server.shutdown()
    assert status == 2 and out.startswith(f"{base}/a.jpg\n") and len(out.splitlines()) == 6
    assert f"cannot download the image {base}/none.jpg: the server answered 404" in err


def test_imagenets_names_are_built_in(command, photos, tmp_path):
    """Weights from elsewhere say no class names."""
    model = models.create("RepVGGA0")
    checkpoint.save(checkpoint.of_model(model, Preprocessing(size=32)), tmp_path / "a.pkl")
    status, out, _ = command(
        "predict", photos / "a.jpg", "--model", tmp_path / "a.pkl", "--json", "--top", 2000
    )
    (found,) = json.loads(out)["images"]
    names = {row["class"]: row["name"] for row in found["predictions"]}
    assert status == 0 and (names[0], names[99], names[999]) == ("tench", "goose", "toilet tissue")
    assert abs(sum(row["probability"] for row in found["predictions"]) - 1) < 1e-9


def _double():
    """An ONNX network that is not of this project and takes no images."""
    node = onnx.helper.make_node("Add", ["x", "x"], ["y"])
    ends = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["any"])] for name in "xy"
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    graph = onnx.helper.make_graph([node], "double", *ends)
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


def test_bad_input_is_one_sentence(command, network, photos, tmp_path):
    def refused(*arguments):
        status, out, err = command("predict", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    image = photos / "a.jpg"
    assert "No such file" in refused(photos / "none.jpg", "--model", network.path)
    assert "there is no" in refused(image, "--model", tmp_path / "none.onnx")
    (tmp_path / "broken.onnx").write_bytes(b"hello")
    assert "onnxruntime cannot run" in refused(image, "--model", tmp_path / "broken.onnx")
    wrong = refused(image, "--model", network.path, "--arch", "RepVGGA1")
    assert "is a checkpoint of RepVGGA0, but RepVGGA1 was expected" in wrong
    model = models.to_deploy(network.model)
    export_onnx(model, tmp_path / "bare.onnx", EXPECTS, size=32)
    assert "does not say which classes" in refused(image, "--model", tmp_path / "bare.onnx")
    export_onnx(model, tmp_path / "wide.onnx", EXPECTS, size=(32, 64))
    assert "takes ['batch', 3, 32, 64]" in refused(image, "--model", tmp_path / "wide.onnx")
    onnx.save(_double(), tmp_path / "elsewhere.onnx")
    assert "takes ['any']; give" in refused(image, "--model", tmp_path / "elsewhere.onnx")
    (tmp_path / "broken.mge").write_bytes(b"hello")
    assert "cannot read" in refused(image, "--model", tmp_path / "broken.mge")
    network.model.linear.bias[0] = float("nan")
    checkpoint.save(checkpoint.of_model(network.model, EXPECTS), network.path)
    assert "no numbers but NaN" in refused(image, "--model", network.path)
