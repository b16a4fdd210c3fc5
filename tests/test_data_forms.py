"""The commands that take --data, on data that is no folder of class folders."""

import json

import models

import cv2
import megengine as mge
import pytest

from data.transforms import Preprocessing
from tests.data.forms import FORMS, tar
from tests.data.test_cifar_mnist import cifar10, mnist
from tests.data.test_cifar_mnist import write as write_cifar
from tests.data.test_parquet import write as write_parquet
from weights import checkpoint


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch, small_repvgg_a0):
    monkeypatch.setenv("REPARAM_CACHE", str(tmp_path / "cache"))


def test_samples_of_each_form_are_shown(command, image_folder, tmp_path):
    root = image_folder(train=4, val=2)
    data = {name: make(root, tmp_path / str(number))[0] for number, (name, make) in
            enumerate(FORMS.items())}  # fmt: skip
    data["parquet"] = write_parquet(root, tmp_path / "hf")
    data["CIFAR-10"] = write_cifar(tmp_path, cifar10("py")[0], "cifar-10-batches-py", True)
    mnist(tmp_path / "mnist")
    data["MNIST"] = tmp_path / "mnist"
    sheet = tmp_path / "sheet.png"
    for name, source in data.items():
        sheet.unlink(missing_ok=True)
        labels = ["--val-list", source / "solution.csv"] if "Kaggle" in name else []
        flags = ["--data", source, "--size", 32, "--show-samples", sheet, *labels]
        status, out, err = command("train", *flags)
        assert status == 0, (name, err)
        assert cv2.imread(str(sheet)).shape[0] > 200 and " samples of " in out, name


@pytest.mark.slow
def test_archives_are_tested_quantized_and_predicted(command, image_folder, tmp_path):
    root = image_folder(train=16, val=3)
    packed = tar(tmp_path / "photos.tar", root)
    flat, labels = FORMS["flat with Kaggle's table"](root, tmp_path / "flat")
    mge.random.seed(0)
    model = models.create("RepVGGA0", 3)
    path = tmp_path / "best.pkl"
    preprocessing = Preprocessing(size=32, crop_ratio=1.0)
    checkpoint.save(
        checkpoint.of_model(model, preprocessing, ["plum", "apple", "pear"]), path
    )  # in another order than that of the folders
    results = []
    for data in ([root], [packed], [flat, "--val-list", labels]):
        flags = ["--model", path, "--workers", 0, "--json"]
        status, out, err = command("test", "--data", *data, *flags)
        assert status == 0, err
        results.append({key: json.loads(out)[key] for key in ("results", "split")})
    assert results[0] == results[1] == results[2] and results[0]["split"] == "val"
    assert command("test", "--data", packed, "--split", "train", *flags)[0] == 0

    reports = []
    train = tar(tmp_path / "calibration.tar", root / "train")
    for calibration, data in ((root / "train", root), (train, packed)):
        flags = ["--calibration", calibration, "--data", data, "--clip", "minmax", "--json"]
        status, out, err = command("quantize", "--model", path, *flags)
        assert status == 0, err
        reports.append(json.loads(out)["networks"])
    assert reports[0] == reports[1]
    flags = ["--calibration", packed, "--data", packed, "--images", 64]
    status, _, err = command("quantize", "--model", path, *flags)
    assert status == 2 and "photos.tar/photos/val/" in err and "is the calibration image" in err

    status, out, err = command("predict", packed, "--model", path, "--json")
    assert status == 0, err
    folder = json.loads(command("predict", root, "--model", path, "--json")[1])["images"]
    found = json.loads(out)["images"]
    assert found[0]["image"] == f"{packed}/photos/train/apple/0.jpg"
    assert [row["predictions"] for row in found] == [row["predictions"] for row in folder]
