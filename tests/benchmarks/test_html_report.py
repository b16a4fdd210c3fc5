"""test.py's report, labels from a file, mirrored images and subsets of the classes."""

import csv
import html.parser
import itertools
import json
import re

import models
from models import equivalence

import cv2
import megengine as mge
import numpy as np
import pytest

import weights
from benchmarks import accuracy, predictions
from data import class_names
from data.readers import class_folders
from data.transforms import Preprocessing
from tests.support import write_image_folder
from weights import checkpoint

CLASSES = ["plum", "apple", "pear"]  # not in the order of the folders


@pytest.fixture
def saved(small_repvgg_a0, tmp_path):
    """A network in a folder as train.py leaves it."""
    return save(tmp_path / "run" / "best.pkl", CLASSES)


def save(path, classes):
    path.parent.mkdir(exist_ok=True)
    model = models.create("RepVGGA0", len(classes))
    equivalence.randomize(
        model, np.random.default_rng(0).standard_normal((8, 3, 32, 32), np.float32)
    )
    checkpoint.save(
        checkpoint.of_model(model, Preprocessing(size=32, crop_ratio=0.8), classes), path
    )
    return path


@pytest.fixture
def photos(tmp_path):
    return write_image_folder(tmp_path / "photos", train=1, val=9, side=50)


class Tables(html.parser.HTMLParser):
    """Texts of the cells of each table, by its id, and all URLs."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.urls, self.tags, self.in_cell = {}, [], set(), False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.tags.add(tag)
        self.urls += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "table":
            self.rows = self.tables.setdefault(attributes.get("id", len(self.tables)), [])
        elif tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag):
        self.in_cell &= tag not in ("td", "th")

    def handle_data(self, data):
        if self.in_cell:
            self.rows[-1][-1] += data


def read(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


@pytest.fixture
def test(command, saved):
    def run(data, *flags, model=saved):
        common = ["--workers", 0, "--val-batch-size", 4, "--json"]
        status, out, err = command("test", "--model", model, "--data", data, *common, *flags)
        assert (status, err) == (0, "")
        return json.loads(out)

    return run


def test_the_folder_is_made_before_the_test(command, saved, tmp_path, photos, monkeypatch):
    """Whose result would be lost otherwise."""
    monkeypatch.setattr(accuracy, "_test_checkpoint", None)
    flags = ["--model", saved, "--data", photos, "--report", "/proc/none/report"]
    status, _, err = command("test", *flags)
    assert status == 2 and "cannot write to /proc/none/report: " in err


def test_the_report_has_the_numbers_of_its_tables(test, saved, tmp_path, photos):
    run = saved.parent
    (run / "run.json").write_text('{"arguments": {"lr": "0.1", "tag": "<i>x</i>", "data": "None"}}')
    (run / "metrics.csv").write_text("epoch,val_top1\n1,33.5\n")
    (run / "curves.png").write_bytes(
        cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))[1].tobytes()
    )
    folder = tmp_path / "report"
    result = test(photos, "--report", folder)
    (row,) = result["results"]
    text = (folder / "report.html").read_text()
    page = Tables(text)
    assert result["report"] == str(folder / "report.html")
    # the matrix is of all images, and its diagonal of those that are recognized
    heading, *matrix = read(folder / "confusion.csv")
    assert heading[1:] == [line[0] for line in matrix] == ["plum", "apple", "pear"]
    counts = np.array([line[1:] for line in matrix], int)
    assert counts.sum() == row["total"] == 27 and np.trace(counts) == row["correct1"] > 0
    assert counts.sum(axis=1).tolist() == [9, 9, 9] and np.trace(counts) < 27
    # the table of the classes, and the same in the report
    with open(folder / "per_class.csv", newline="") as file:
        classes = {line["class"]: line for line in csv.DictReader(file)}
    for i, (name, line) in enumerate(classes.items()):
        assert int(line["correct"]) == counts[i, i] and int(line["predicted"]) == counts[:, i].sum()
        assert line["top1"] == f"{100 * counts[i, i] / 9:.2f}" and line["name"] == name
    assert sum(int(line["top5_correct"]) for line in classes.values()) == row["correct5"]
    heading, *shown = page.tables["classes"]
    assert heading[0] == "class" and len(shown) == 3
    for name, _, *numbers in shown:
        keys = ("images", "correct", "top1", "top5", "predicted", "precision",
                "mostly_taken_for", "times")  # fmt: skip
        assert numbers == [classes[name][key] for key in keys]
    assert f"{row['top1']:.2f} %" in text and f"{row['correct1']} of 27" in text
    # the run's settings and curves; nothing comes from elsewhere or is executed
    assert ["lr", "0.1"] in itertools.chain(*page.tables.values()) and "<i>x" not in text
    assert "data</td>" not in text
    assert len(page.urls) == 2 + min(20, 27 - row["correct1"])
    assert all(url.startswith("data:image/") for url in page.urls)
    assert not page.tags & {"script", "link", "iframe"} and "prefers-color-scheme" in text
    for name in ("confusion.png", "per_class.png"):
        assert cv2.imread(str(folder / name)) is not None


def test_names_are_text(test, saved, tmp_path):
    root = write_image_folder(tmp_path / "data", ("<b>a & b", "$x_1$"), train=1, val=3, side=50)
    save(saved, ["<b>a & b", "$x_1$"])
    test(root, "--report", tmp_path / "report")
    page = Tables((tmp_path / "report" / "report.html").read_text())
    assert {line[0] for line in page.tables["classes"]} == {"class", "<b>a & b", "$x_1$"}


def test_mistakes_are_the_most_confident_first(test, saved, tmp_path, photos):
    test(photos, "--report", tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    shown = re.findall(r"<figcaption>(\w+)<br><b>(\w+)</b> ([\d.]+) %", text)
    val, logits, _ = logits_of(saved, photos)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    expected = []
    for i, share in enumerate(shares):
        best = CLASSES[int(share.argmax())]
        if best != val.classes[val.labels[i]]:
            expected.append((-share.max(), val.classes[val.labels[i]], best))
    expected = sorted(expected)[:20]
    assert [pair[:2] for pair in shown] == [pair[1:] for pair in expected]
    assert [float(p) for *_, p in shown] == pytest.approx(
        [-100 * s for s, *_ in expected], abs=0.06
    )


def logits_of(file, folder):
    """What a checkpoint computes for the images of a folder, and for their mirror images."""
    contents, val = checkpoint.read(file), class_folders.read(folder, "val")
    model = weights.load(contents)
    model.eval()
    images = [contents.preprocessing.evaluation(val.image(i)) for i in range(len(val))]
    both = (np.stack(images), np.stack(images)[..., ::-1].copy())
    return val, *(model(mge.Tensor(batch)).numpy().astype(np.float64) for batch in both)


def test_mirrored_images_count_half(test, saved, photos, tmp_path):
    val, logits, mirrored = logits_of(saved, photos)
    shares = [np.exp(x) / np.exp(x).sum(axis=1, keepdims=True) for x in (logits, mirrored)]
    right = np.array([CLASSES.index(val.classes[label]) for label in val.labels])
    expected = [int((x.argmax(axis=1) == right).sum()) for x in (shares[0], sum(shares))]
    plain, flipped = test(photos), test(photos, "--tta", "flip", "--report", tmp_path / "report")
    text = (tmp_path / "report" / "report.html").read_text()
    shown = [float(p) for p in re.findall(r"</b> ([\d.]+) %</figcaption>", text)]
    wrong = sum(shares).argmax(axis=1) != right
    confident = np.sort(sum(shares)[wrong].max(axis=1) / 2)[::-1][:20]
    assert shown == pytest.approx((100 * confident).tolist(), abs=0.06)
    assert flipped["tta"] == "flip" and "tta" not in plain
    assert [r["results"][0]["correct1"] for r in (plain, flipped)] == expected
    model = predictions.Flipped(weights.load(checkpoint.read(saved)))
    model.eval()
    batch = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    one, other = (model(mge.Tensor(x)).numpy() for x in (batch, batch[..., ::-1].copy()))
    np.testing.assert_allclose(one, other, atol=1e-5)
    np.testing.assert_allclose(np.exp(one).sum(axis=1), 1, atol=1e-5)


WNIDS = list(class_names.imagenet_classes())


@pytest.fixture
def imagenet(tmp_path):
    """Nine images of three of ImageNet's classes, named as the validation set's."""
    names = (WNIDS[3], WNIDS[500], WNIDS[900])
    root = write_image_folder(tmp_path / "imagenet", names, train=1, val=3, side=50)
    for number, file in enumerate(sorted(root.glob("val/*/*.jpg")), 1):
        file.rename(file.with_name(f"ILSVRC2012_val_{number:08d}.JPEG"))
    return root


def test_labels_from_a_file(test, command, saved, tmp_path, imagenet):
    """Those of a network of three of the classes, and of all 1,000, by position or by name."""
    three = save(tmp_path / "three.pkl", [WNIDS[900], WNIDS[3], WNIDS[500]])
    thousand = save(tmp_path / "thousand.pkl", WNIDS)
    files = sorted(file.name for file in imagenet.glob("val/*/*.JPEG"))
    folders = [[3]] * 3 + [[500]] * 3 + [[900]] * 3
    for model in (three, thousand):
        plain = test(imagenet, model=model)
        real = tmp_path / "real.json"
        real.write_text(json.dumps(folders))
        same = test(imagenet, "--labels", real, model=model)
        assert same["results"] == plain["results"] and same["labels"] == str(real)
        # by name of the file and of the class, one of several, or none
        by_name = {name: WNIDS[label] for name, (label,) in zip(files, folders, strict=True)}
        real.write_text(json.dumps(by_name))
        assert test(imagenet, "--labels", real, model=model)["results"] == plain["results"]
        real.write_text(json.dumps([[], [3, 500, 900], [], *[[3, 500, 900]] * 3, [1], [], []]))
        several = test(imagenet, "--labels", real, "--only-present-classes", model=model)
        (row,) = several["results"]
        known = 4 if model == three else 5  # class 1 is not one of the three
        assert row["total"] == known
        assert model == thousand or row["correct1"] == 4
        real.write_text(json.dumps([[3, 500, 900]] * 9))
        (row,) = test(imagenet, "--labels", real, "--only-present-classes", model=model)["results"]
        assert row["correct1"] == row["total"] == 9
    for content, sentence in (
        ("[[]", "is not JSON"),
        ("3", "has neither a list of the images' classes nor"),
        (json.dumps([[]] * 9), "has no label for any of the 9 images of imagenet"),
        (json.dumps([[1000]] * 9), "has the class 1000 for"),
        (json.dumps([["n0"]] * 9), "has the class 'n0' for"),
        (json.dumps([[1]] * 8), "labels by number, 1 to 8, and ILSVRC2012_val_00000009.JPEG"),
    ):
        real.write_text(content)
        arguments = ["--model", thousand, "--data", imagenet, "--labels", real, "--workers", 0]
        status, out, err = command("test", *arguments)
        assert status == 2 and sentence in err and len(err.splitlines()) == 1, sentence
    status, _, err = command("test", "--model", thousand, "--data", imagenet, "--labels", "none")
    assert status == 2 and "cannot read none: No such file" in err


def test_a_choice_among_the_classes_that_are_there(test, tmp_path, imagenet):
    thousand = save(tmp_path / "thousand.pkl", WNIDS)
    all_of_them = test(imagenet, model=thousand)["results"][0]
    report = tmp_path / "report"
    among = test(imagenet, "--only-present-classes", "--report", report, model=thousand)
    assert among["among"] == "3 classes, which the data has"
    (row,) = among["results"]
    assert row["correct1"] >= all_of_them["correct1"] and row["correct5"] == row["total"] == 9
    heading, *_ = read(report / "confusion.csv")
    assert heading[1:] == [WNIDS[3], WNIDS[500], WNIDS[900]]  # nothing else was chosen
    names = [line["name"] for line in csv.DictReader((report / "per_class.csv").open())]
    assert names == [class_names.imagenet_classes()[w] for w in heading[1:]]
