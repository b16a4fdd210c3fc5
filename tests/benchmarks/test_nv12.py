"""benchmark.py nv12: the six ways from an image to the network."""

import json

import models

import cv2
import megengine as mge
import numpy as np
import pytest

from benchmarks import nv12
from data.transforms import Preprocessing
from deployment.boards.scripts import pixels
from weights import checkpoint


def test_nv12_is_read_as_opencv_does_or_as_full_range(rng):
    blocks = np.repeat(np.repeat(rng.integers(0, 256, (16, 16, 3), np.uint8), 2, 0), 2, 1)
    packed = pixels.nv12(blocks)
    found = nv12.from_nv12(packed, 32, full_range=False).astype(int)
    expected = cv2.cvtColor(packed.reshape(48, 32), cv2.COLOR_YUV2BGR_NV12)
    assert np.abs(found - expected).max() <= 1 and np.abs(found - blocks).max() <= 3
    for level, seen in ((0, 16), (255, 235), (127, 125)):
        grey = pixels.nv12(np.full((8, 8, 3), level, np.uint8))
        assert (nv12.from_nv12(grey, 8, full_range=True) == seen).all()


@pytest.fixture
def trained(small_repvgg_a0, tmp_path):
    mge.random.seed(0)
    model = models.create("RepVGGA0", 3)
    path = tmp_path / "best.pkl"
    classes = ["apple", "pear", "plum"]
    checkpoint.save(checkpoint.of_model(model, Preprocessing(size=32), classes), path)
    return path


def test_the_command_measures_six_ways(command, trained, image_folder):
    data = image_folder(train=1, val=9)
    flags = ["nv12", "--model", trained, "--data", data]
    status, out, err = command("benchmark", *flags, "--json")
    assert status == 0, err
    rows = json.loads(out)
    assert [(row["crop"], row["input"]) for row in rows] == [
        (crop, color) for crop in nv12.CROPS for color in nv12.COLORS
    ]
    status, out, _ = command("test", "--data", data, "--model", trained, "--json")
    (tested, *_) = json.loads(out)["results"]
    assert rows[0]["images"] == 27 and rows[0]["agreement"] == 100
    assert rows[0]["top1"] == pytest.approx(tested["top1"], abs=0.01)
    status, out, _ = command("benchmark", *flags)
    assert status == 0 and "NV12 read as full range" in out

    odd = trained.with_name("odd.pkl")
    contents = checkpoint.of_model(models.create("RepVGGA0", 3), Preprocessing(size=33))
    checkpoint.save(contents, odd)
    status, _, err = command("benchmark", "nv12", "--model", odd, "--data", data)
    assert status == 2 and "does not take square colour images of an even side" in err
