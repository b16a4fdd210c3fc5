"""The Ascend kit, from image files to the board's results, with onnxruntime as the board."""

import json
import subprocess
import sys
from dataclasses import replace

import models

import cv2
import megengine as mge
import numpy as np
import onnxruntime
import pytest
from PIL import Image

from data.decoding import decode
from data.folders import image_files
from data.transforms import TORCHVISION, Preprocessing
from deployment.boards import ascend, ascend_results
from deployment.boards import labels as kit_labels
from tests.support import ROOT, write_image_folder
from utils import UserError

SMALL = Preprocessing(size=32)


@pytest.fixture
def deployed(tiny):
    return models.to_deploy(tiny(num_classes=12))


def run_board(kit, batch):
    """What the benchmark tool does: the images of the .info file in batches, a text file each."""
    (info,) = kit.glob("*.info")
    (network,) = kit.glob("*.onnx")
    session = onnxruntime.InferenceSession(network)
    lines = info.read_text().splitlines()
    dump = kit / "result" / "dumpOutput_device0"
    dump.mkdir(parents=True)
    for start in range(0, len(lines), batch):
        _, paths, widths, heights = zip(
            *(line.split(" ") for line in lines[start : start + batch]), strict=True
        )
        shape = (3, int(heights[0]), int(widths[0]))
        images = np.stack([np.fromfile(kit / path, np.float32).reshape(shape) for path in paths])
        (outputs,) = session.run(["output1"], {"actual_input_1": images})
        for path, row in zip(paths, outputs, strict=True):
            stem = path.split("/")[-1].split(".")[0]
            text = " ".join(f"{value:.6f}" for value in row)
            (dump / f"{stem}_1.txt").write_text(text + "\n")
    return dump


def test_from_photographs_to_result_json(tmp_path, deployed):
    """A folder with classes, in which files of two classes have the same name."""
    root = write_image_folder(tmp_path / "data", train=1, val=6, side=60)
    classes = [*"bcdefghij", "apple", "pear", "plum"]  # labels 9, 10, 11
    images, labels = kit_labels.labelled_images(root, None, 12, classes)
    kit = tmp_path / "kit"
    listed = ascend.write_kit(deployed, SMALL, images, labels, kit, {"arch": "RepVGGA0"})
    assert sorted(listed) == sorted(path.name for path in kit.iterdir())
    names = [f"{i:08}_{i % 6}" for i in range(18)]
    assert (kit / "RepVGGA0_prep_bin.info").read_text() == "".join(
        f"{i} ./prep_dataset/{name}.bin 32 32\n" for i, name in enumerate(names)
    )
    assert (kit / "val_label.txt").read_text() == "".join(
        f"{name}.jpg {9 + i // 6}\n" for i, name in enumerate(names)
    )
    sizes = {file.name: file.stat().st_size for file in (kit / "prep_dataset").iterdir()}
    assert sizes == {f"{name}.bin": 3 * 32 * 32 * 4 for name in names}

    dump = run_board(kit, batch=5)
    out = tmp_path / "result.json"
    done = subprocess.run(
        [sys.executable, "ascend.py", "score", dump, kit / "val_label.txt", out],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    deployed.eval()
    inputs = np.stack([ascend.prepare(file, SMALL) for file in images])
    logits = deployed(mge.Tensor(inputs)).numpy()
    ranks = (logits > logits[np.arange(18), labels][:, None]).sum(axis=1)
    tops = [round((ranks < n).sum() / 18 * 100, 2) for n in (1, 2, 3, 4, 5)]
    assert tops[0] < tops[4]
    values = ", ".join(
        f'{{"key": "Top{n} accuracy", "value": "{top}%"}}' for n, top in enumerate(tops, start=1)
    )
    assert out.read_bytes().decode() == (
        '{"title": "Overall statistical evaluation", "value": '
        '[{"key": "Number of images", "value": "18"}, '
        '{"key": "Number of classes", "value": "12"}, ' + values + "]}"
    )


# (width, height) -> (width, height) after resizing, left and top of the crop
@pytest.mark.parametrize(
    ("size", "resized", "left", "top"),
    [
        ((400, 300), (341, 256), 58, 16),
        ((300, 437), (256, 372), 16, 74),  # 372.9
        ((333, 501), (256, 385), 16, 80),
        ((256, 419), (256, 419), 16, 98),
        ((90, 70), (329, 256), 52, 16),
        ((224, 224), (256, 256), 16, 16),
    ],
)
@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK"])
def test_pixels_are_the_documented_ones(tmp_path, rng, size, resized, left, top, mode):
    picture = Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), np.uint8)).convert(mode)
    path = tmp_path / ("a.tiff" if mode == "CMYK" else "a.png")
    picture.save(path)
    picture = picture.convert("RGB")
    if size != resized:
        picture = picture.resize(resized, Image.BILINEAR)
    pixels = np.array(picture, dtype=np.float32)[top : top + 224, left : left + 224]
    pixels /= 255
    pixels -= np.array([0.485, 0.456, 0.406], np.float32)
    pixels /= np.array([0.229, 0.224, 0.225], np.float32)
    assert ascend.prepare(path, TORCHVISION).tobytes() == pixels.transpose(2, 0, 1).tobytes()


def test_bgr_and_sixteen_bits(tmp_path, rng):
    deep = rng.integers(0, 1 << 16, (40, 50), np.uint16)
    cv2.imwrite(str(tmp_path / "flat.png"), (deep >> 8).astype(np.uint8))
    flat = ascend.prepare(tmp_path / "flat.png", SMALL)
    for name in ("deep.png", "deep.pgm"):
        cv2.imwrite(str(tmp_path / name), deep)
        assert np.array_equal(ascend.prepare(tmp_path / name, SMALL), flat)
    Image.fromarray(deep.astype(np.float32)).save(tmp_path / "deep.tiff")  # of no known range
    with pytest.raises(UserError, match="the image .*deep.tiff is corrupt"):
        ascend.prepare(tmp_path / "deep.tiff", SMALL)
    cv2.imwrite(str(tmp_path / "rgb.png"), rng.integers(0, 256, (50, 40, 3), np.uint8))
    rgb = ascend.prepare(tmp_path / "rgb.png", SMALL)
    swapped = replace(SMALL, color="BGR", mean=SMALL.mean[::-1], std=SMALL.std[::-1])
    assert np.array_equal(ascend.prepare(tmp_path / "rgb.png", swapped), rgb[::-1])


def test_photographs_are_turned_as_for_an_evaluation(tmp_path, rng):
    image = Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was on its side
    image.save(tmp_path / "a.png", exif=exif)
    expected = SMALL.evaluation(decode(tmp_path / "a.png"))
    assert np.allclose(ascend.prepare(tmp_path / "a.png", SMALL), expected, atol=1e-6)


def test_a_flat_folder_with_a_label_file(tmp_path, deployed):
    folder = tmp_path / "val"
    folder.mkdir()
    for i in (3, 1, 2):
        cv2.imwrite(str(folder / f"ILSVRC2012_val_{i:08}.JPEG"), np.full((40, 50, 3), i, np.uint8))
    labels = tmp_path / "val_label.txt"
    labels.write_text("".join(f"ILSVRC2012_val_{i:08}.JPEG {i * 2}\n" for i in (1, 2, 3, 4)))
    files, found = kit_labels.labelled_images(folder, labels, 12, None)
    assert files == image_files(folder) and found == [2, 4, 6]
    ascend.write_kit(deployed, SMALL, files, found, tmp_path / "kit")
    assert (tmp_path / "kit" / "val_label.txt").read_text() == "".join(
        labels.read_text().splitlines(keepends=True)[:3]
    )
    for text, message in {
        "ILSVRC2012_val_00000001.JPEG 1\n": "00000002.JPEG has no label",
        labels.read_text().replace(" 2\n", " 12\n"): "has the label 12 in .* one of 0 to 11",
        "a.1.jpg 3\na.2.jpg 4\n": "has the labels 3 and 4 for images that are called 'a'",
        "ILSVRC2012_val_00000001.JPEG one\n": "lines that are not `FILE_NAME LABEL`",
    }.items():
        labels.write_text(text)
        with pytest.raises(UserError, match=message):
            kit_labels.labelled_images(folder, labels, 12, None)


def test_bad_input_leaves_nothing(tmp_path, deployed):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    for images, out, message in (
        ([tmp_path / "a.jpg"], "kit", "the image .*a.jpg is corrupt"),
        ([tmp_path / "b.jpg"], "new/kit", "cannot read the image .*b.jpg"),
        ([], ".", "exists already and is not empty"),
    ):
        with pytest.raises(UserError, match=message):
            ascend.write_kit(deployed, SMALL, images, [0] * len(images), tmp_path / out)
        assert [path.name for path in tmp_path.iterdir()] == ["a.jpg"]
    with pytest.raises(UserError, match="there is no folder"):
        kit_labels.labelled_images(tmp_path / "none", tmp_path / "a.jpg", 12, None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="there are no images in"):
        kit_labels.labelled_images(tmp_path / "empty", tmp_path / "a.jpg", 12, None)


# ---------------------------------------------------------------- the board's results


def dumped(folder, rows):
    folder.mkdir(exist_ok=True)
    for name, row in rows.items():
        (folder / name).write_text(" ".join(map(str, row)) + "\nmore\n")
    return folder


def facts(result):
    return [fact["value"] for fact in result["value"]]


def test_scores(tmp_path):
    labels = tmp_path / "labels.txt"
    labels.write_text("a_b.x.jpg 2\nc.jpg 0\nd.jpg 1\n")
    rows = {"a_b_1.txt": [0, 1, 5], "c_1.txt": [1, 3, 2], "d_1.txt": [5, 1, 4]}
    result = ascend_results.score(dumped(tmp_path / "dump", rows), labels)
    assert facts(result) == ["3", "3", "33.33%", "33.33%", "100.0%"]

    # of 1001 classes, the first is none
    rows = {f"{n}_1.txt": np.eye(1001, dtype=int)[k] for n, k in zip("cd", (1, 1), strict=True)}
    result = ascend_results.score(dumped(tmp_path / "more", rows), labels)
    assert facts(result) == ["2", "1001", "50.0%", "50.0%", *["100.0%"] * 3]


def ais_bench(folder, rows, form, rate=407.16, batch=1):
    """What ais_bench writes: a file for each image, and a summary beside their folder."""
    folder.mkdir()
    files = {}
    for number, (name, row) in enumerate(rows.items()):
        file, row = folder / f"{name}_0.{form}", np.array(row, np.float32)
        if form == "npy":
            np.save(file, row[None])
        elif form == "bin":
            row.tofile(file)
        else:
            file.write_text("\n".join(map(str, row)))
        source = f"./prep_dataset/{name}.bin"
        files[str(number)] = {"infiles": [source], "outfiles": [f"/on/the/board/{file.name}"]}
    summary = {
        "filesinfo": files,
        "NPU_compute_time": {"min": 1, "max": 9, "mean": 1000 * batch / rate, "median": 2},
        "throughput": rate,
    }
    path = folder.parent / f"{folder.name}_summary.json"
    path.write_text(json.dumps(summary))
    return path


def test_outputs_beside_the_summary_come_before_those_it_names(tmp_path, monkeypatch):
    summary = ais_bench(tmp_path / "result", {"c": [1, 3]}, "npy")
    said = json.loads(summary.read_text())
    said["filesinfo"]["0"]["outfiles"] = ["./result/c_0.npy"]
    summary.write_text(json.dumps(said))
    (tmp_path / "labels.txt").write_text("c.jpg 1\n")
    (tmp_path / "elsewhere").mkdir()
    ais_bench(tmp_path / "elsewhere" / "result", {"c": [3, 1]}, "npy")  # of another network
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert facts(ascend_results.score(summary, tmp_path / "labels.txt"))[2] == "100.0%"


def test_outputs_are_those_of_the_kits_network(tmp_path):
    labels = tmp_path / "val_label.txt"
    labels.write_text("a.jpg 3\n")
    (tmp_path / "network.json").write_text(json.dumps({"classes": ["c"] * 4}))
    with pytest.raises(UserError, match="has 2 outputs, but the kit's network has 4 classes"):
        ascend_results.score(dumped(tmp_path / "half", {"a_1.txt": [1, 2]}), labels)
    (tmp_path / "network.json").write_text(json.dumps({"classes": ["c"] * 1001}))
    dump = dumped(tmp_path / "all", {"a_1.txt": np.eye(1001, dtype=int)[3]})
    assert facts(ascend_results.score(dump, labels))[2] == "100.0%"  # no background class
    labels.write_text("a.jpg 1001\n")
    with pytest.raises(UserError, match="the label 1001, but .* has 1001 outputs; give the val"):
        ascend_results.score(dump, labels)


def test_a_summary_inside_its_folder(tmp_path):
    summary = ais_bench(tmp_path / "result", {"c": [1, 3]}, "npy")
    inside = tmp_path / "result" / "sumary.json"  # as older releases spell it
    summary.rename(inside)
    (tmp_path / "labels.txt").write_text("val/c.jpg 1\n")
    assert facts(ascend_results.score(inside, tmp_path / "labels.txt"))[2] == "100.0%"


def test_two_images_with_the_same_name_are_refused(tmp_path, deployed, rng):
    for folder in ("a", "b"):
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.fromarray(rng.integers(0, 256, (9, 9, 3), np.uint8)).save(
            tmp_path / "images" / folder / "1.png"
        )
    (tmp_path / "labels.txt").write_text("1.png 3\n")
    with pytest.raises(UserError, match="a/1.png and .*b/1.png are called '1' up to the first dot"):
        kit_labels.labelled_images(tmp_path / "images", tmp_path / "labels.txt", 10, None)


@pytest.mark.parametrize("form", ["npy", "bin", "txt"])
def test_scores_of_ais_bench(tmp_path, command, form):
    labels = tmp_path / "labels.txt"
    labels.write_text("a_b.x.jpg 2\nc.jpg 0\nd.jpg 1\n")
    rows = {"a_b": [0, 1, 5], "c": [1, 3, 2], "d": [5, 1, 4]}
    summary = ais_bench(tmp_path / "result", rows, form)
    for given in (tmp_path / "result", summary):
        out = tmp_path / "out.json"
        assert command("ascend", "score", given, labels, out)[::2] == (0, "")
        assert facts(json.loads(out.read_text())) == ["3", "3", "33.33%", "33.33%", "100.0%"]
    status, _, err = command("ascend", "parse", summary, "310P")
    assert (status, err) == (0, "")
    assert command("ascend", "parse", summary, "310P")[1] == "310P bs1 fps:407.16\n"
    assert command("ascend", "parse", summary, "310")[1] == "310 bs1 fps:1628.64\n"


def test_a_summary_of_batches_and_a_second_output(tmp_path):
    path = ais_bench(tmp_path / "result", {"c": [1, 3], "d": [5, 1]}, "npy", 4000.0, batch=16)
    assert ascend_results.frames_per_second(path, "310P") == ("16", 4000.0)
    summary = json.loads(path.read_text())
    both = [*(run["outfiles"][0] for run in summary["filesinfo"].values()), "/x/c_1.npy"]
    summary["filesinfo"] = {"0": {"infiles": ["c.bin", "d.bin"], "outfiles": both}}
    path.write_text(json.dumps(summary))
    np.save(tmp_path / "result" / "c_1.npy", np.zeros(7))
    (tmp_path / "labels.txt").write_text("c.jpg 1\nd.jpg 1\n")
    for given in (path, tmp_path / "result"):
        assert facts(ascend_results.score(given, tmp_path / "labels.txt"))[:3] == [
            "2", "2", "50.0%",
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no JSON", "cannot read .*: it is no JSON"),
        ("{}", "lists no outputs; give a summary of ais_bench"),
        ('{"filesinfo": {}}', "lists no outputs; run ais_bench with --output"),
        ('{"filesinfo": {"0": {"outfiles": ["c_0.npy"]}}}', "c_0.npy is no dumped output"),
        ("[]", "lists no outputs"),
    ],
)
def test_bad_summaries(tmp_path, text, message):
    (tmp_path / "labels.txt").write_text("c.jpg 0\n")
    path = tmp_path / "result_summary.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message):
        ascend_results.score(path, tmp_path / "labels.txt")
    with pytest.raises(UserError, match="is no summary of ais_bench|it is no JSON"):
        ascend_results.frames_per_second(path, "310P")


def test_a_throughput_without_an_end(tmp_path):
    path = tmp_path / "a_summary.json"
    path.write_text('{"throughput": Infinity, "NPU_compute_time": {"mean": 1}}')
    with pytest.raises(UserError, match="is no summary of ais_bench"):
        ascend_results.frames_per_second(path, "310P")


def test_labels_of_files_in_another_encoding(tmp_path):
    path = tmp_path / "val_label.txt"
    path.write_bytes(b"caf\xe9.jpg 1\n")
    assert kit_labels.read_labels(path) == {"caf\udce9": 1}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({}, "there are no outputs in"),
        ({"z_1.txt": [1, 2]}, "has no label for z, of which"),
        ({"c_1.txt": ["nothing"]}, "c_1.txt is no dumped output"),
        ({"c_1.txt": []}, "c_1.txt is no dumped output"),
        ({"c_1.txt": ["nan", 1]}, "c_1.txt is no dumped output"),
        ({"c_1.txt": [1, 2], "d_1.txt": [1, 2, 3]}, "d_1.txt has 3 outputs, but .*c_1.txt 2"),
    ],
)
def test_bad_dumps(tmp_path, command, rows, message):
    """In text; an empty .npy is of a copy that was interrupted."""
    (tmp_path / "labels.txt").write_text("c.jpg 0\nd.jpg 1\n")
    dump, out = dumped(tmp_path / "dump", rows), tmp_path / "out.json"
    status, _, err = command("ascend", "score", dump, tmp_path / "labels.txt", out)
    assert status == 2 and not out.exists() and err.count("\n") == 1
    with pytest.raises(UserError, match=message):
        ascend_results.score(dump, tmp_path / "labels.txt")
    (dump / "c_0.npy").touch()
    with pytest.raises(UserError, match="c_0.npy is no dumped output"):
        ascend_results.score(dump, tmp_path / "labels.txt")


PERF = """\
[e2e] throughputRate: 243.034, latency: 205733
[data read] throughputRate: 258.963, moduleLatency: 3.86155
[preprocess] throughputRate: 258.404, moduleLatency: 3.86991
[infer] throughputRate: 244.435, Interface throughputRate: 278.013, moduleLatency: 3.90311
[post] throughputRate: 243.5, moduleLatency: 4.1
"""


@pytest.mark.parametrize("text", [PERF, PERF.strip(), PERF.replace("278.013", "278.013samples/s")])
def test_frames_per_second(tmp_path, command, text):
    path = tmp_path / "perf_vision_batchsize_16_device_0.txt"
    path.write_text(text)
    assert command("ascend", "parse", path, "310")[:2] == (
        0,
        "310 bs16 fps:1112.052\n",
    )
    assert command("ascend", "parse", path, "310P")[1] == "310P bs16 fps:278.013\n"


def test_bad_performance_files(tmp_path, command):
    (tmp_path / "perf.txt").write_text(PERF)
    (tmp_path / "perf_vision_batchsize_1_device_0.txt").write_text("[e2e] throughputRate: 1\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, chip, message in (
        ("perf.txt", "310", "is no perf_vision_batchsize_N_device_D.txt"),
        ("perf_vision_batchsize_1_device_0.txt", "310", "is no perf_vision_batchsize_N_device_D"),
        ("none", "310P", "No such file"),
        ("binary", "310P", "it is no text"),
        ("perf.txt", "T4", "invalid choice: 'T4'"),
    ):
        status, out, err = command("ascend", "parse", tmp_path / name, chip)
        assert (status, out) == (2, "") and message in err and err.count("\n") == 1


def test_missing_outputs_are_said_and_labels_are_kept(tmp_path, command):
    labels = tmp_path / "labels.txt"
    labels.write_text("a.jpg 2\nb.jpg 0\nc.jpg 0\n")
    dump = dumped(tmp_path / "dump", {"a_1.txt": [0, 1, 5]})
    status, _, err = command("ascend", "score", dump, labels, labels)
    assert status == 2 and f"{labels} is the file to read; give another name by OUT.json" in err
    status, _, err = command("ascend", "score", dump, labels, tmp_path / "out.json")
    assert status == 0 and f"warning: 2 of the 3 images of {labels} have no output" in err
