"""benchmark.py data: that it compares the same work, not how fast it is."""

import json
import shutil

import numpy as np
import pytest

from benchmarks import data_pipeline
from data.decoding import BadImageError
from data.transforms import Preprocessing
from tests.data.forms import tar
from utils import UserError


@pytest.mark.slow
def test_it_times_each_pipeline(command, image_folder, tmp_path):
    folder = image_folder()
    arguments = ["--data", folder, "--size", 32, "--images", 8, "--batch-size", 4, "--rounds", 1]
    status, out, err = command("benchmark", "data", *arguments, "--json")
    assert status == 0, err
    rows = json.loads(out)
    names = ["Pillow", "MegEngine", "ours", "ours, 2 workers"]
    assert [row["variant"] for row in rows] == names
    assert all(row["per_core"] > 0 and row["images_per_second"] > 0 for row in rows)
    flat = tmp_path / "flat"
    shutil.copytree(folder / "val" / "pear", flat)
    status, out, err = command("benchmark", "data", *arguments[2:], "--data", flat, "--workers", 1)
    assert status == 0, err
    assert len(out.splitlines()) == 2 + 4


def test_the_pipelines_give_the_same_kind_of_batches(image_folder):
    dataset = data_pipeline.find_images(image_folder(), 24)
    means = []
    for pipeline in data_pipeline.variants(workers=1).values():
        found = [images for images, _ in pipeline(dataset, Preprocessing(size=32), 8, 0)]
        assert [images.shape for images in found] == [(8, 3, 32, 32)] * 3
        assert all(images.dtype == np.float32 for images in found)
        means.append(np.mean(found))
    assert np.ptp(means) < 0.1 < np.abs(means).min()


def test_files_are_chosen_evenly_and_used_again(image_folder):
    folder = image_folder()
    assert len(set(data_pipeline.find_images(folder, 21).images)) == 21
    images = data_pipeline.find_images(folder, 200).images
    assert len(images) == 200 and len(set(images)) == 63


@pytest.mark.slow
def test_several_forms_of_a_data_set_are_compared(command, image_folder, tmp_path):
    folder = image_folder()
    packed = tar(tmp_path / "photos.tar", folder)
    arguments = ["--size", 32, "--images", 8, "--batch-size", 4, "--rounds", 1, "--json"]
    status, out, err = command("benchmark", "data", "--data", folder, packed, *arguments)
    assert status == 0, err
    rows = json.loads(out)
    assert [row["variant"] for row in rows] == [f"ours, {folder}", f"ours, {packed}"]
    assert rows[0]["times_first"] == 1 and rows[1]["per_core"] > 0


def test_the_forms_must_be_of_the_same_images(image_folder, tmp_path):
    folder = image_folder()
    packed = tar(tmp_path / "photos.tar", folder)
    same = data_pipeline.find_same_images([str(folder), str(packed)], 20)
    first, second = same.values()
    assert first.names == second.names and len({*first.names}) == 15 and len(first) == 20
    (folder / "val/pear/1.jpg").unlink()
    with pytest.raises(UserError, match="photos has 14 validation images and .*photos.tar 15; giv"):
        data_pipeline.find_same_images([str(folder), str(packed)], 20)


@pytest.mark.parametrize("pipeline, library", [("Pillow", "Pillow"), ("MegEngine", "OpenCV")])
def test_an_image_that_cannot_be_decoded_is_named(image_folder, pipeline, library):
    folder = image_folder(train=4, val=2)
    (folder / "train/pear/1.jpg").write_bytes(b"no image")
    dataset = data_pipeline.find_images(folder, 18)
    run = data_pipeline.variants(0)[pipeline]
    with pytest.raises(BadImageError, match=f"{library} cannot decode the image .*pear/1.jpg"):
        list(run(dataset, Preprocessing(size=32), 6, 0))


@pytest.mark.parametrize(
    "flags, message",
    [(["--images", "10"], "less than two batches of 64"), ([], "there are no images under")],
)
def test_what_cannot_be_timed_is_refused(command, tmp_path, flags, message):
    status, _, err = command("benchmark", "data", "--data", tmp_path, *flags)
    assert status == 2 and message in err and len(err.splitlines()) == 1
