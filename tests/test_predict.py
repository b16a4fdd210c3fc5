"""predict.py: what is in files, folders and URLs, by a network in any kind of file."""

import csv
import json
import threading
import zipfile
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import models

import cv2
import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np
import onnx
import pytest

import predict
from data.decoding import decode
from data.transforms import BASECLS, Preprocessing
from deployment import input_format, network_file
from deployment.mge_export import export_mge
from deployment.network import load
from deployment.onnx_export import export_onnx
from utils import UserError
from weights import checkpoint

CLASSES = ["apple", "pear", "plum", "quince", "Käse", "n02514041", "g"]
SHOWN = [*CLASSES[:5], "barracouta", "g"]  # ImageNet's identifiers become words
EXPECTS = replace(BASECLS, size=32)  # BGR


@pytest.fixture(autouse=True)
def small(small_repvgg_a0):
    """Every RepVGGA0 is a small one."""


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


class Server(SimpleHTTPRequestHandler):
    """A server that prints nothing."""

    def log_message(self, *_):
        pass


def test_a_url(command, network, photos):
    handler = partial(Server, directory=photos)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        base = f"http://127.0.0.1:{server.server_port}"
        status, out, err = command(
            "predict", f"{base}/a.jpg", f"{base}/none.jpg", "--model", network.path
        )
        server.shutdown()
    assert status == 2 and out.startswith(f"{base}/a.jpg\n") and len(out.splitlines()) == 6
    assert err.count("\n") == 1
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


def _with_output(kind):
    """An ONNX network of images that gives no logits: a constant, or several tensors as one."""
    images = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 3, 32, 32])
    if kind == "sequence":
        node = onnx.helper.make_node("SequenceConstruct", ["x"], ["y"])
        output = onnx.helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, None)
    elif kind == "transposed":
        node = onnx.helper.make_node("Transpose", ["x"], ["y"], perm=[1, 0, 2, 3])
        output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [3, "n", 32, 32])
    else:
        value = onnx.numpy_helper.from_array(np.ones((1, 3, 32, 32), np.float32))
        node = onnx.helper.make_node("Constant", [], ["y"], value=value)
        output = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 3, 32, 32])
    inputs = [] if kind == "no inputs" else [images]
    graph = onnx.helper.make_graph([node], kind, inputs, [output])
    opsets = [onnx.helper.make_opsetid("", 17)]
    return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)


@pytest.mark.parametrize(
    "kind, said",
    [
        ("no inputs", "takes 0 inputs; give a network with one input of float images"),
        ("sequence", "is no tensor for 2 images; give a classifier"),
        ("transposed", r"is of the shape \(3, 2, 32, 32\) for 2 images; give a classifier"),
        ("constant", r"is of the shape \(1, 3, 32, 32\) for 2 images; give a classifier"),
    ],
)
def test_what_gives_no_logits_is_one_sentence(tmp_path, kind, said):
    onnx.save(_with_output(kind), tmp_path / "a.onnx")
    with pytest.raises(UserError, match=said):
        network_file.read(tmp_path / "a.onnx").run(np.zeros((2, 3, 32, 32), np.float32))


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
    bare = refused(image, "--model", tmp_path / "bare.onnx")
    assert "does not say which classes its network has; give --class-names, or" in bare
    wrong = refused(image, "--model", tmp_path / "bare.onnx", "--arch", "RepVGGA0")
    assert "does not say which architecture it is of; leave out --arch" in wrong
    metadata = {"arch": "RepVGGA0", "classes": CLASSES, "num_classes": len(CLASSES)}
    maps = {**metadata, "features": [16, 16, 32, 64]}
    export_onnx(model, tmp_path / "maps.onnx", EXPECTS, size=32, metadata=maps, features=True)
    assert "gives feature maps and no classes" in refused(image, "--model", tmp_path / "maps.onnx")
    export_onnx(model, tmp_path / "a.onnx", EXPECTS, size=32, metadata=metadata)
    damaged = onnx.load(tmp_path / "a.onnx")
    conv = next(node for node in damaged.graph.node if node.op_type == "Conv")
    (shape,) = (one for one in conv.attribute if one.name == "kernel_shape")
    shape.ints[:] = [3, 7]  # which onnxruntime notices when it runs
    onnx.save(damaged, tmp_path / "damaged.onnx")
    assert "kernel_shape is not compatible" in refused(image, "--model", tmp_path / "damaged.onnx")
    fixed = refused(image, "--model", tmp_path / "a.onnx", "--size", 64)
    assert "takes images of 32 x 32 only; leave out --size" in fixed
    onnx.save(_double(), tmp_path / "elsewhere.onnx")
    assert "takes ['any']; give" in refused(image, "--model", tmp_path / "elsewhere.onnx")
    assert "the argument after --model is empty; give a value" in refused(image, "--model", "")
    assert "the argument after --model is empty; give a value" in refused(image, "--model=")
    assert "cannot read a.pth=: No such file" in refused(image, "--model=a.pth=")
    long = tmp_path / ("a" * 300)
    assert f"cannot read {long}: File name too long" in refused(image, "--model", long)
    (tmp_path / "broken.mge").write_bytes(b"hello")
    assert "cannot read" in refused(image, "--model", tmp_path / "broken.mge")
    file = tmp_path / "nan.onnx"
    assert command("export", "--model", network.path, "--out", file)[0] == 0
    exported = onnx.load(file)
    for tensor in exported.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.shape == (len(CLASSES),):
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.float32("nan"), tensor.name))
    onnx.save(exported, file)
    assert "no numbers but NaN" in refused(image, "--model", file)


@pytest.mark.parametrize("kind", ["onnx", "mge"])
def test_a_rectangular_file_is_fed_what_it_says(command, network, photos, tmp_path, kind):
    """A crop of 32 x 64 pixels, as the live network sees it."""
    metadata = {"arch": "RepVGGA0", "classes": CLASSES, "num_classes": len(CLASSES)}
    path = tmp_path / f"wide.{kind}"
    export = export_onnx if kind == "onnx" else export_mge
    preprocessing = replace(EXPECTS, crop_ratio=0.8)
    model = models.to_deploy(network.model)
    export(model, path, preprocessing, size=(32, 64), metadata=metadata)
    image = cv2.imread(str(photos / "a.jpg"))  # 50 x 60: its width decides
    resized = cv2.resize(image, (80, 67), interpolation=cv2.INTER_LINEAR)
    crop = resized[(67 - 32) // 2 :, 8:][:32, :64]
    powers = np.exp(network.model(mge.Tensor(EXPECTS.normalize(crop)[None])).numpy()[0])
    status, text, err = command("predict", photos / "a.jpg", "--model", path, "--json")
    assert (status, err) == (0, "")
    rows = json.loads(text)["images"][0]["predictions"]
    assert len(rows) == 5
    for row in rows:
        assert abs(row["probability"] - (powers / powers.sum())[row["class"]]) < 1e-5


def test_one_class_has_a_probability_of_its_own(command, photos, tmp_path):
    model = models.create("RepVGGA0", 1)
    model.linear.bias[0] = 0.25
    checkpoint.save(checkpoint.of_model(model, EXPECTS, ["apple"]), tmp_path / "one.pkl")
    model.eval()
    logit = model(mge.Tensor(EXPECTS.evaluation(decode(photos / "a.jpg"))[None])).numpy()[0, 0]
    status, out, _ = command("predict", photos / "a.jpg", "--model", tmp_path / "one.pkl", "--json")
    (row,) = json.loads(out)["images"][0]["predictions"]
    assert status == 0 and row["name"] == "apple"
    assert row["probability"] == pytest.approx(1 / (1 + np.exp(-logit)), rel=1e-5)


def test_many_images_go_through_in_batches_to_a_table(command, network, tmp_path, rng):
    """40 images with a broken one among them: in order, and as each alone is classified."""
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(40):
        image = rng.integers(0, 256, (40, 40 + i, 3), np.uint8)
        cv2.imwrite(str(folder / f"{i:02}.png"), image)
    (folder / "07.png").write_bytes(b"no image")
    table = tmp_path / "new" / "classes.csv"
    flags = ["--model", network.path, "--top", 2]
    status, out, err = command("predict", folder, *flags, "--csv", table)
    assert status == 2 and out == f"39 of 40 images classified: {table}\n"
    assert err.count("\n") == 1 and "07.png is corrupt" in err
    with open(table, newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "class1", "name1", "probability1", "class2", "name2",
                      "probability2", "error"]  # fmt: skip
    assert [row[0] for row in rows] == [str(folder / f"{i:02}.png") for i in range(40)]
    assert rows[7][1:7] == [""] * 6 and "07.png is corrupt" in rows[7][7]
    for i in (0, 15, 16, 39):
        expected = network(folder / f"{i:02}.png")
        best, second = np.argsort(-expected)[:2]
        assert rows[i][1:3] == [str(best), SHOWN[best]] and rows[i][4] == str(second)
        assert float(rows[i][3]) == pytest.approx(expected[best], rel=1e-4) and rows[i][7] == ""
    status, _, err = command("predict", folder, *flags, "--csv", table, "--json")
    assert status == 2 and "not allowed with" in err
    before = table.read_bytes()
    network.model.linear.bias[0] = float("nan")
    checkpoint.save(checkpoint.of_model(network.model, EXPECTS), network.path)
    assert command("predict", folder, *flags, "--csv", table)[0] == 2
    assert table.read_bytes() == before and list(table.parent.iterdir()) == [table]


@pytest.mark.parametrize("kind", ["logits", "softmax", "softmax, noted", "half", "dynamic"])
def test_a_network_from_elsewhere_with_flags(command, network, photos, tmp_path, kind):
    """Its file says nothing but shapes; the flags say the rest, for pixels from 0 to 1."""
    path, names = tmp_path / "foreign.onnx", tmp_path / "names.txt"
    options = {"half": kind == "half", "free_size": kind == "dynamic", "batch": 1}
    export_onnx(models.to_deploy(network.model), path, EXPECTS, size=32, **options)
    proto = onnx.load(path)
    del proto.metadata_props[:]
    if kind == "softmax, noted":  # as onnxruntime's quantizer notes something
        proto.metadata_props.add(key="onnx.infer", value="onnxruntime.quant")
    if kind.startswith("softmax"):
        proto.graph.output[0].name = "probabilities"
        node = onnx.helper.make_node("Softmax", ["logits"], ["probabilities"])
        proto.graph.node.append(node)
    if kind == "half":  # float16 ends, as converters make them
        for cast in (proto.graph.node[0], proto.graph.node[-1]):
            proto.graph.node.remove(cast)
        proto.graph.input[0].name, proto.graph.output[0].name = "input.half", "logits.half"
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(proto, path)
    names.write_text("\n".join(SHOWN), encoding="utf-8")
    flags = ["--color", "bgr", "--class-names", names, "--mean", 0.4055, 0.456, 0.485,
             "--std", 0.225, 0.224, 0.229, "--resize-backend", "opencv"]  # fmt: skip
    arguments = [photos / "a.jpg", "--model", path, *flags, "--json"]
    if kind == "dynamic":
        status, _, err = command("predict", *arguments)
        assert status == 2 and "takes images of any size; give --size" in err
        arguments += ["--size", 32]
    status, out, err = command("predict", *arguments)
    assert status == 0
    assert "colour order: BGR (--color)" in err and "resize backend: opencv (--resize-" in err
    assert f"size: 32 ({'--size' if kind == 'dynamic' else 'the file'})" in err
    for line in ("interpolation: bilinear", "crop ratio: 0.875"):
        assert f"{line} (assumed: as is usual with PyTorch)\n" in err
    expected = network(photos / "a.jpg")
    rows = json.loads(out)["images"][0]["predictions"]
    assert len(rows) == 5
    for row in rows:
        assert row["name"] == SHOWN[row["class"]]
        tolerance = 1e-2 if kind == "half" else 1e-3  # the flags' means are rounded
        assert abs(row["probability"] - expected[row["class"]]) < tolerance


def test_flags_that_do_not_fit_are_one_sentence(command, network, photos, tmp_path):
    (tmp_path / "names.txt").write_text("one\ntwo\n")
    (tmp_path / "empty.json").write_text("[]")

    def refused(*flags):
        status, out, err = command("predict", photos / "a.jpg", "--model", network.path, *flags)
        assert (status, out, err.count("\n")) == (2, "", 1)
        return err

    wrong = refused("--class-names", tmp_path / "names.txt")
    assert "--class-names has 2 class names, but the network in" in wrong and "7 classes" in wrong
    assert "holds no class names" in refused("--class-names", tmp_path / "empty.json")
    assert "cannot read the class names" in refused("--class-names", tmp_path / "none.txt")
    mixed = refused("--mean", 0.4, 0.4, 0.4, "--std", 58, 57, 57)
    assert "give both for the same pixels" in mixed
    assert "'-1' is not a number above 0" in refused("--std", -1, 2, 3)


def test_a_file_that_says_its_preprocessing_alone(command, network, photos, tmp_path):
    """As `export_onnx` writes it without metadata: the class names are all that is asked for."""
    export_onnx(models.to_deploy(network.model), tmp_path / "bare.onnx", EXPECTS, size=32)
    (tmp_path / "names.txt").write_text("\n".join(SHOWN), encoding="utf-8")
    flags = ["--model", tmp_path / "bare.onnx", "--class-names", tmp_path / "names.txt", "--json"]
    status, out, err = command("predict", photos / "a.jpg", *flags)
    assert status == 0 and "resize backend: opencv (the file)" in err
    expected = network(photos / "a.jpg")
    best = json.loads(out)["images"][0]["predictions"][0]
    assert best["class"] == expected.argmax()
    assert best["probability"] == pytest.approx(expected.max(), rel=1e-4)


class Probabilities(M.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network
        self.arch, self.num_classes = "elsewhere", len(CLASSES)

    def forward(self, x):
        return F.softmax(self.network(x))


def test_a_softmax_in_an_mge_file_from_elsewhere(command, network, photos, tmp_path):
    model = Probabilities(models.to_deploy(network.model))
    export_mge(model, tmp_path / "soft.mge", EXPECTS, size=32)
    (tmp_path / "names.txt").write_text("\n".join(SHOWN), encoding="utf-8")
    flags = ["--model", tmp_path / "soft.mge", "--class-names", tmp_path / "names.txt", "--json"]
    status, out, err = command("predict", photos / "a.jpg", *flags)
    assert status == 0, err
    best = json.loads(out)["images"][0]["predictions"][0]
    assert best["probability"] == pytest.approx(network(photos / "a.jpg").max(), rel=1e-4)


def test_a_pickle_is_a_checkpoint_whatever_its_name(command, network, photos, tmp_path):
    for name in ("a.mge", "a.onnx"):
        path = network.path.rename(tmp_path / name)
        status, out, err = command("predict", photos / "a.jpg", "--model", path, "--top", 1)
        assert (status, err) == (0, "") and len(out.splitlines()) == 2
        network.path = path


def test_an_mge_file_for_any_size(command, network, photos, tmp_path):
    metadata = {"arch": "RepVGGA0", "classes": CLASSES, "num_classes": len(CLASSES)}
    path = tmp_path / "any.mge"
    model = models.to_deploy(network.model)
    export_mge(model, path, EXPECTS, size=32, metadata=metadata, free_size=True)
    flags = ["--model", path, "--size", 64, "--json"]
    status, out, err = command("predict", photos / "a.jpg", *flags)
    assert status == 0, err
    image = replace(EXPECTS, size=64).evaluation(decode(photos / "a.jpg"))
    logits = network.model(mge.Tensor(image[None])).numpy()[0]
    best = json.loads(out)["images"][0]["predictions"][0]
    assert best["class"] == logits.argmax()


def test_what_cannot_be_read_is_reported_beside_the_others(command, network, photos, tmp_path):
    (tmp_path / "bad.zip").write_bytes(b"PK\3\4 and nothing more")
    with zipfile.ZipFile(tmp_path / "texts.zip", "w") as archive:
        archive.writestr("readme.txt", "no images")
    names = [tmp_path / "bad.zip", photos / "a.jpg", tmp_path / "texts.zip", "b" * 300]
    status, out, err = command("predict", *names, "--model", network.path, "--top", 1)
    assert status == 2 and len(out.splitlines()) == 2 and len(err.splitlines()) == 3
    assert "bad.zip is truncated or damaged" in err
    assert f"the archive {tmp_path / 'texts.zip'} holds no images" in err
    assert "File name too long" in err


def test_names_of_pictures_are_short_enough_to_save(command, network, photos, tmp_path):
    name = "\u56fe" * 83  # 249 bytes, of the 255 that a file system takes
    (photos / "a.jpg").rename(photos / f"{name}.jpg")
    flags = ["--model", network.path, "--save", tmp_path / "out"]
    status, _, err = command("predict", photos / f"{name}.jpg", *flags)
    assert (status, err) == (0, "")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [f"{name[:50]}-labelled.jpg"]


def test_a_failure_is_said_while_other_images_are_decoded(network, tmp_path, rng):
    """The decoders of PNG files keep the standard error to themselves for a while."""
    folder = tmp_path / "many"
    folder.mkdir()
    content = cv2.imencode(".png", rng.integers(0, 256, (900, 900, 3), np.uint8))[1].tobytes()
    for i in range(20):
        (folder / f"{i:02}.png").write_bytes(content)
    (tmp_path / "file").write_bytes(b"")
    net = load(network.path)
    args = predict.parse_args(["-", "--save", str(tmp_path / "file" / "folder")])
    names = [str(path) for path in sorted(folder.iterdir())]
    started = threading.active_count()
    with pytest.raises(UserError, match="cannot save"):
        for _ in predict.reported(net, names, args):
            pass
    assert threading.active_count() == started  # nobody decodes any more


def test_a_rectangle_of_a_very_long_image(command, network, tmp_path):
    metadata = {"arch": "RepVGGA0", "classes": CLASSES, "num_classes": len(CLASSES)}
    path = tmp_path / "tall.onnx"
    export_onnx(models.to_deploy(network.model), path, EXPECTS, size=(64, 32), metadata=metadata)
    cv2.imwrite(str(tmp_path / "line.png"), np.full((1, 60_000, 3), 90, np.uint8))
    status, out, err = command("predict", tmp_path / "line.png", "--model", path, "--top", 1)
    assert (status, err) == (0, "") and len(out.splitlines()) == 2


def test_a_table_does_not_replace_what_is_read(command, network, photos, tmp_path):
    for file in (network.path, photos / "a.jpg"):
        before = file.read_bytes()
        status, _, err = command("predict", photos, "--model", network.path, "--csv", file)
        assert status == 2 and f"{file} is the file to read; give another name by --csv" in err
        assert file.read_bytes() == before


def test_a_labelled_picture_does_not_replace_an_image(command, network, photos):
    mine = photos / "a-labelled.jpg"
    mine.write_bytes((photos / "a.jpg").read_bytes())
    status, out, err = command("predict", photos, "--model", network.path, "--save", photos)
    assert (status, out) == (2, "") and f"{mine} is one of the images to classify" in err
    assert mine.read_bytes() == (photos / "a.jpg").read_bytes()


def test_class_names_cannot_draw_on_the_terminal(command, network, photos, tmp_path):
    path = tmp_path / "names.pkl"
    names = [f"\x1b[2J{name}\nall good" for name in CLASSES]
    checkpoint.save(checkpoint.of_model(network.model, EXPECTS, names), path)
    status, out, _ = command("predict", photos / "a.jpg", "--model", path, "--top", 1)
    assert status == 0 and "\x1b" not in out and len(out.splitlines()) == 2


def test_a_file_that_normalizes_itself_takes_no_mean(command, network, photos, tmp_path):
    file = tmp_path / "a.onnx"
    export = ["export", "--model", network.path, "--out", file, "--fold-normalization"]
    assert command(*export)[0] == 0
    flags = ["--model", file, "--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5]
    for name, *more in (("predict", photos / "a.jpg"), ("quantize", "--calibration", photos)):
        status, _, err = command(name, *more, *flags)
        assert status == 2 and "normalizes them itself; leave out --mean and --std" in err


@pytest.mark.parametrize(
    "key, value, sentence",
    [
        ("num_classes", "12", "does not say"),
        ("classes", json.dumps("abcde"), "does not say"),
        ("classes", "[" * 200_000, "does not say"),
        ("both", "", "says that it has 2 classes, and computes"),
    ],
)
def test_changed_metadata_are_a_sentence(command, network, photos, tmp_path, key, value, sentence):
    file = tmp_path / "a.onnx"
    assert command("export", "--model", network.path, "--out", file)[0] == 0
    model = onnx.load(file)
    changed = {"num_classes": "2", "classes": '["x", "y"]'} if key == "both" else {key: value}
    for entry in model.metadata_props:
        entry.value = changed.get(entry.key, entry.value)
    onnx.save(model, file)
    status, _, err = command("predict", photos / "a.jpg", "--model", file)
    assert status == 2 and sentence in err and len(err.splitlines()[-1]) < 500
