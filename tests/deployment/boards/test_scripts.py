"""The kits' scripts: pixels as this project makes them, and whole runs on stand-ins for a board."""

import ast
import os
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import models

import cv2
import numpy as np
import onnxruntime
import pytest

from data.decoding import decode
from data.transforms import BASECLS, TORCHVISION, Preprocessing
from deployment.boards import ascend, kit, rdk, rknn
from deployment.boards.scripts import pixels
from tests.deployment.boards.programs import run

SCRIPTS = Path(pixels.__file__).parent
WAYS = {
    "pillow": TORCHVISION,
    "pillow, bicubic": replace(TORCHVISION, interpolation="bicubic", crop_ratio=0.9),
    "opencv, BGR": BASECLS,
    "opencv, bicubic, whole": Preprocessing(interpolation="bicubic", crop_ratio=1.0, size=256),
}
SHAPES = [(500, 375), (333, 501), (256, 300), (256, 256), (90, 70), (224, 224), (31, 640),
          (6000, 3), (1, 40_000)]  # fmt: skip


@pytest.mark.parametrize("preprocessing", WAYS.values(), ids=WAYS)
def test_the_pixels_are_this_projects(rng, preprocessing):
    network = kit.network_settings(preprocessing)
    for shape in SHAPES:
        image = rng.integers(0, 256, (*shape, 3), np.uint8)
        crop = pixels.evaluation_crop(image, network)
        assert np.array_equal(crop, preprocessing.evaluation_crop(image)), shape
        inputs = pixels.normalized(crop, network)
        assert inputs.dtype == np.float32
        assert inputs.tobytes() == preprocessing.evaluation(image)[None].tobytes()
        ordered = pixels.in_network_order(crop, network)
        assert np.array_equal(ordered[..., 0], crop[..., 2 if network["color"] == "RGB" else 0])


def test_nv12_is_in_bt601s_video_range():
    colors = {  # BGR -> Y, U, V
        (0, 0, 0): (16, 128, 128),
        (255, 255, 255): (235, 128, 128),
        (255, 0, 0): (41, 240, 110),
        (0, 255, 0): (145, 54, 34),
        (0, 0, 255): (82, 90, 240),
        (127, 127, 127): (125, 128, 128),
    }
    for bgr, (y, u, v) in colors.items():
        packed = pixels.nv12(np.full((4, 6, 3), bgr, np.uint8))
        assert packed.shape == (4 * 6 * 3 // 2,) and packed.dtype == np.uint8
        assert (packed[:24] == y).all() and packed[24:].tolist() == [u, v] * 6, bgr


def test_nv12_is_read_back_by_opencv(rng):
    blocks = np.repeat(np.repeat(rng.integers(0, 256, (5, 5, 3), np.uint8), 2, 0), 2, 1)
    planes = pixels.nv12(blocks).reshape(15, 10)
    back = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12).astype(int)
    assert np.abs(back - blocks).max() <= 2


def test_letterbox_shows_the_whole_image():
    network = {"size": 224}
    for shape, inside in (((300, 400), (28, 0)), ((401, 200), (0, 56)), ((224, 224), (0, 0))):
        boxed = pixels.letterbox(np.full((*shape, 3), 9, np.uint8), network)
        assert boxed.shape == (224, 224, 3)
        inner = (boxed == 9).all(axis=2)
        assert (inner.any(axis=1).argmax(), inner.any(axis=0).argmax()) == inside
        assert set(np.unique(boxed)) <= {9, 127}


def test_a_single_logit_of_any_size():
    assert [pixels.best_classes([x], 1) for x in (-800.0, 0.0, 800.0)] == [
        [(0, 0.0)],
        [(0, 0.5)],
        [(0, 1.0)],
    ]


def test_a_thin_picture_is_not_enlarged_beyond_the_memory():
    thin = np.zeros((1, 3000, 3), np.uint8)
    assert pixels.with_lines(thin, ["0.5  1  cat"]).shape[:2] == (1, 4000)
    assert pixels.with_lines(np.zeros((100, 200, 3), np.uint8), []).shape[:2] == (400, 800)


def test_the_best_classes():
    assert pixels.best_classes([0.0], 5) == [(0, 0.5)]
    logits = np.array([1000.0, 1002.0, 1001.0, 1002.0])
    best = pixels.best_classes(logits.reshape(1, 4, 1, 1), 3)
    assert [number for number, _ in best] == [1, 3, 2]
    powers = np.exp(logits - 1002)
    assert np.allclose([p for _, p in best], (powers / powers.sum())[[1, 3, 2]])


@pytest.mark.parametrize("name", sorted(path.name for path in SCRIPTS.glob("*.py")))
def test_the_scripts_are_for_boards(name):
    """They are written in Python 3.7, and import nothing of this project."""
    tree = ast.parse((SCRIPTS / name).read_text(), feature_version=(3, 7))
    imported = {
        alias.name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    } | {
        node.module.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module
    }
    vendors = {"rknn", "rknnlite", "ais_bench"}
    own = {"pixels", "program", "numpy", "cv2"}
    if name == "convert_rknn.py":  # for a PC; the toolkit brings it
        own.add("onnxruntime")
    assert imported - own - vendors <= set(sys.stdlib_module_names)


# ---------------------------------------------------------------- whole runs


@pytest.fixture
def network(tiny):
    return models.to_deploy(tiny(num_classes=6))


@pytest.fixture
def photos(image_folder):
    return image_folder(train=2, val=1, side=70)


SMALL = replace(TORCHVISION, size=32)
CLASSES = ["ant", "bee", "cat", "dog", "eel", "fox"]


@pytest.fixture
def make_kit(network, photos, tmp_path):
    """A function that writes a board's kit, with the network in place of the compiled one."""

    def make(board):
        out, about = tmp_path / "kit", {"classes": CLASSES}
        if board == "ascend":
            images = sorted((photos / "val").rglob("*.jpg"))
            ascend.write_kit(network, SMALL, images, [0] * len(images), out, about)
            names = ("RepVGGA0.onnx", "RepVGGA0_bs1.om")
        elif board == "rknn":
            rknn.write_kit(network, SMALL, photos, out, 2, about)
            names = ("RepVGGA0.onnx", "RepVGGA0.rknn")
        else:
            rdk.write_kit(network, SMALL, photos, out, 2, about)
            names = ("RepVGG-A0.onnx", "RepVGG-A0_32x32_nv12.bin")
        shutil.copyfile(out / names[0], out / names[1])
        return out

    return make


BOARDS = {"hbm": "rdk", "dnn": "rdk", "ascend": "ascend", "lite": "rknn"}  # runtime -> kit


@pytest.mark.parametrize("runtime", BOARDS)
def test_a_photograph_is_classified_on_a_board(make_kit, photos, tmp_path, runtime):
    folder = make_kit(BOARDS[runtime])
    image = next((photos / "train").rglob("*.jpg"))
    script = folder / "classify.py"
    status, out, err = run(script, image, "--save", tmp_path / "saved", runtime=runtime)
    assert (status, err) == (0, "")
    name, *lines, times = out.splitlines()
    assert name == str(image) and len(lines) == 5
    assert re.fullmatch(
        r"pre-processing \d+\.\d\d ms, inference \d+\.\d\d ms, post-processing \d+\.\d\d ms", times
    )
    crop = SMALL.evaluation_crop(decode(image))
    if BOARDS[runtime] == "rdk":
        planes = pixels.nv12(crop).reshape(48, 32)
        crop = cv2.cvtColor(planes, cv2.COLOR_YUV2BGR_NV12)
    session = onnxruntime.InferenceSession(next(folder.glob("*.onnx")))
    entry = session.get_inputs()[0].name
    logits = session.run(None, {entry: SMALL.normalize(crop)[None]})[0][0].astype(float)
    probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    order = np.argsort(-probabilities)[:5]
    found = [re.fullmatch(r" *([\d.]+)%  +(\d+)  (\w+)", line) for line in lines]
    assert [int(match[2]) for match in found] == order.tolist()
    assert [match[3] for match in found] == [CLASSES[i] for i in order]
    percentages = [float(match[1]) for match in found]
    assert np.allclose(percentages, 100 * probabilities[order], atol=0.011)

    saved = cv2.imread(str(tmp_path / "saved" / f"{image.stem}-labelled.png"))
    assert min(saved.shape[:2]) >= 400
    plain = cv2.resize(cv2.imread(str(image)), saved.shape[1::-1])
    assert np.abs(saved.astype(int) - plain).max() > 100  # white letters


def test_a_network_of_bgr_images_gets_whole_arrays(rng):
    image = rng.integers(0, 256, (300, 400, 3), np.uint8)
    network = kit.network_settings(BASECLS)
    crop = pixels.evaluation_crop(image, network)
    assert not crop.flags.c_contiguous
    assert pixels.in_network_order(crop, network).flags.c_contiguous


@pytest.mark.parametrize(
    "runtime, threads, what",
    [
        ("hbm", (1, 4), "4 frames"),
        ("ascend", (1,), "4 calls of 2 frames"),
        ("lite", (1,), "4 frames"),
    ],
)
def test_speed_is_measured_on_a_board(make_kit, runtime, threads, what):
    folder = make_kit(BOARDS[runtime])
    flags = ["--bench", "--frames", 4]
    status, out, err = run(folder / "classify.py", *flags, runtime=runtime, SECONDS="0.05")
    assert (status, err) == (0, "")
    first, *lines = out.splitlines()
    assert first == f"RepVGGA0: {what}, input prepared once"
    found = [re.fullmatch(r"(\d) threads?: ([\d.]+) ms, ([\d.]+) frames/s", x) for x in lines]
    assert tuple(int(match[1]) for match in found) == threads
    batch = 2 if runtime == "ascend" else 1
    for count, match in zip(threads, found, strict=True):
        assert float(match[2]) >= 50  # milliseconds of a call of the stand-in
        # frames of one call at a time take what a call takes; of four threads, no longer
        rate = batch * 1000 / float(match[2])
        assert float(match[3]) <= 1.01 * count * rate
        assert float(match[3]) >= 0.7 * rate


def test_every_picture_is_written(make_kit, photos, tmp_path):
    """Also those of the same name in several folders or formats."""
    files = [tmp_path / name for name in ("a/1.jpg", "a/1.png", "b/1.png")]
    for file in files:
        file.parent.mkdir(exist_ok=True)
        cv2.imwrite(str(file), cv2.imread(str(next(photos.rglob("*.jpg")))))
    saved = tmp_path / "saved"
    script = make_kit("rdk") / "classify.py"
    assert run(script, files[0].parent, files[2], "--save", saved, runtime="hbm")[0] == 0
    assert sorted(path.name for path in saved.iterdir()) == [
        f"000{i}_1-labelled.png" for i in range(3)
    ]


@pytest.mark.parametrize("name", [b"\xe9\xff.png", "中文.png".encode()])
def test_file_names_in_any_encoding(make_kit, photos, tmp_path, name):
    file = os.path.join(os.fsencode(tmp_path), b"some", name)
    os.mkdir(os.path.dirname(file))
    picture = cv2.imencode(".png", cv2.imread(str(next(photos.rglob("*.jpg")))))[1]
    with open(file, "wb") as out:
        out.write(picture.tobytes())
    script = make_kit("rdk") / "classify.py"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    flags = [tmp_path / "some", "--save", tmp_path / "saved"]
    status, out, err = run(script, *flags, runtime="hbm", **plain)
    assert (status, err) == (0, "") and len(out.splitlines()) == 7
    assert len(os.listdir(tmp_path / "saved")) == 1


def test_what_goes_wrong_on_a_board_is_said(make_kit, tmp_path):
    folder = make_kit("rdk")
    script, bad = folder / "classify.py", tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    for arguments, runtime, said in (
        ([bad], None, "neither hbm_runtime nor hobot_dnn is installed; run this on the board"),
        ([bad], "hbm", f"cannot read the image {bad}"),
        ([bad, "--model", "none.bin"], "hbm", "there is no none.bin; compile it as README.txt"),
        ([], "hbm", "give images, or --bench"),
    ):
        status, out, err = run(script, *arguments, runtime=runtime)
        assert (status, out) == (2, "") and said in err and "Traceback" not in err
    (tmp_path / "empty").mkdir()
    status, out, err = run(script, tmp_path / "empty", runtime="hbm")
    assert (status, out) == (2, "") and "there are no images in" in err
    status, _, err = run(script, bad, "--save", bad, runtime="hbm")
    assert status == 2 and f"cannot write to the folder {bad}" in err and "Traceback" not in err
    settings = (folder / "network.json").read_text()
    (folder / "network.json").write_text(settings.replace('"size": 32', '"size": 64'))
    shutil.copytree(folder, tmp_path / "other")
    (folder / "network.json").write_text(settings)
    model = folder / "RepVGG-A0_32x32_nv12.bin"
    other = tmp_path / "other"
    status, _, err = run(other / "classify.py", "--bench", "--model", model, runtime="hbm")
    assert status == 2 and "takes images of 32 x 32, and this kit is for 64 x 64" in err

    (other / "network.json").write_text(settings.replace('"ant",', ""))
    image = next((tmp_path / "photos").rglob("*.jpg"))
    status, _, err = run(other / "classify.py", image, "--model", model, runtime="hbm")
    assert status == 2 and "has 6 outputs, and this kit is for 5 classes" in err
    (other / "network.json").write_text(settings.replace('"std"', '"deviation"'))
    status, _, err = run(other / "classify.py", image, "--model", model, runtime="hbm")
    assert status == 2 and "network.json has no std; copy all files of one kit" in err
    for flags in ([image], ["--bench"]):
        status, _, err = run(script, *flags, runtime="hbm", OUTPUT="nonsense")
        assert status == 2 and "the runtime failed on an input of uint8 [1536] (" in err
    (tmp_path / "hbm_runtime.py").write_text("raise ImportError('libhbrt4.so: not found')")
    status, _, err = run(script, image, PYTHONPATH=str(tmp_path))
    assert status == 2 and "cannot load hbm_runtime: libhbrt4.so: not found" in err
    (other / "network.json").unlink()
    status, _, err = run(other / "classify.py", image, runtime="hbm")
    assert status == 2 and f"cannot read {other / 'network.json'}; copy it" in err
    model.write_bytes(b"no network")
    status, _, err = run(script, image, runtime="hbm")
    assert status == 2 and f"the runtime cannot load {model}" in err and "Traceback" not in err


def test_integers_with_known_scales_are_classified(make_kit, photos):
    """As of a network whose last Dequantize the mapper has removed."""
    image = next((photos / "train").rglob("*.jpg"))
    script = make_kit("rdk") / "classify.py"
    _, expected, _ = run(script, image, runtime="hbm")
    status, out, err = run(script, image, runtime="hbm", SCALED="1")
    assert (status, err) == (0, "")
    assert out.splitlines()[:-1] == expected.splitlines()[:-1]  # but for the times


@pytest.mark.parametrize("kind", ["jpg", "png", "bmp"])
def test_an_image_whose_end_is_missing_is_refused(kind, photos, tmp_path):
    photo = cv2.imread(str(next(photos.rglob("*.jpg"))))
    content = cv2.imencode(f".{kind}", photo)[1].tobytes()
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    markers = b"\xff\xd8 \xff\xd9 \xff\xda"
    if kind == "jpg":  # a small picture in front
        content = content[:2] + b"\xff\xff\xe1\x00\x0a" + markers + content[2:]
    whole.write_bytes(content + b"what some cameras append" + markers)
    cut.write_bytes(content[: len(content) * 2 // 3])
    assert np.array_equal(pixels.read_image(whole), decode(whole))
    assert pixels.read_image(cut) is None
    assert pixels.read_image(tmp_path / "none") is None


@pytest.mark.parametrize("runtime, module", [("ascend", "ais_bench"), ("lite", "rknnlite")])
def test_why_a_runtime_cannot_be_loaded_is_said(make_kit, tmp_path, runtime, module):
    script = make_kit(BOARDS[runtime]) / "classify.py"
    status, out, err = run(script, "--bench")
    assert (status, out) == (2, "") and f"cannot load {module} (No module named" in err
    (tmp_path / "broken").mkdir()
    broken = tmp_path / "broken" / f"{module}.py"
    broken.write_text("raise ImportError('libascendcl.so: cannot open shared object file')")
    status, out, err = run(script, "--bench", PYTHONPATH=str(broken.parent))
    assert (status, out) == (2, "") and f"cannot load {module} (libascendcl.so: cannot" in err


def test_only_this_kits_network_is_measured(make_kit):
    script = make_kit("rdk") / "classify.py"
    settings = script.with_name("network.json")
    settings.write_text(settings.read_text().replace('"ant",', ""))
    status, out, err = run(script, "--bench", "--frames", 1, runtime="hbm")
    assert (status, out) == (2, "") and "has 6 outputs, and this kit is for 5 classes" in err


def test_a_runtime_that_fails_in_threads_is_said(make_kit):
    script = make_kit("rdk") / "classify.py"
    flags = ["--bench", "--frames", 40]
    status, _, err = run(script, *flags, runtime="hbm", FAIL_AFTER="20")
    assert status == 2 and "the runtime failed with 1 thread (no more calls)" in err
    assert "Traceback" not in err


@pytest.mark.parametrize("runtime", ["hbm", "dnn"])
def test_outputs_that_are_no_floats_are_refused(make_kit, photos, runtime):
    image = next((photos / "train").rglob("*.jpg"))
    script = make_kit("rdk") / "classify.py"
    status, out, err = run(script, image, runtime=runtime, OUTPUT="int32")
    assert (status, out) == (2, "") and "the compiled network returns int32, whose scale" in err
