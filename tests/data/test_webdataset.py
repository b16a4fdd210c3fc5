"""Shards of WebDataset: which files are a sample, and which label is its own."""

import tarfile

import numpy as np
import pytest

from data.readers import open_dataset
from tests.data.forms import add
from utils import UserError


@pytest.fixture
def read(tmp_path, image_folder, monkeypatch):
    """A function that writes a shard of files, "jpeg" being a picture, and reads it."""
    monkeypatch.setenv("REPARAM_CACHE", str(tmp_path / "cache"))
    picture = (image_folder() / "train/apple/0.jpg").read_bytes()

    def write_and_read(files):
        with tarfile.open(tmp_path / "train-0000.tar", "w") as archive:
            for name, content in files.items():
                add(archive, name, picture if content == "jpeg" else content.encode())
        return open_dataset(tmp_path / "train-0000.tar", "train")

    return write_and_read


def test_a_mask_beside_the_image_is_no_image(read):
    dataset = read({"0.jpg": "jpeg", "0.seg.png": "jpeg", "0.cls": "0",
                    "1.seg.png": "jpeg", "1.cls": "1", "1.jpg": "jpeg"})  # fmt: skip
    assert [name.rpartition("/")[2] for name in dataset.names] == ["0.jpg", "1.jpg"]
    assert dataset.labels.tolist() == [0, 1]
    assert "2 files of other kinds (.seg.png)" in str(dataset.left_out)


def test_an_only_image_may_have_a_further_word(read):
    dataset = read({"0.input.jpg": "jpeg", "0.cls": "0", "1.input.jpg": "jpeg", "1.cls": "1"})
    assert dataset.labels.tolist() == [0, 1]


def test_names_with_dots_do_not_share_a_label(read):
    files = {f"v1.{i}.{kind}": content for i in range(2)
             for kind, content in (("jpg", "jpeg"), ("cls", str(i)))}  # fmt: skip
    with pytest.raises(
        UserError, match=r"two labels, .*v1\.0\.cls and .*v1\.1\.cls; its name ends"
    ):
        read(files)
    with pytest.raises(
        UserError, match=r"two images, .*v1\.0\.jpg and .*v1\.1\.jpg; its name ends"
    ):
        read({name: "0" if name.endswith("cls") else content for name, content in files.items()})
    with pytest.raises(UserError, match=r"two images, .*0\.jpg and .*0\.png"):
        read({"0.jpg": "jpeg", "0.png": "jpeg", "0.cls": "1"})


@pytest.mark.parametrize("values", [("0", "1"), ("0.0", "1.0"), ("false", "true")])
def test_numbers_in_json(read, values):
    files = {}
    for i, value in enumerate(values):
        files |= {f"{i}.jpg": "jpeg", f"{i}.json": f'{{"label": {value}}}'}
    dataset = read(files)
    assert dataset.numbered
    np.testing.assert_array_equal(dataset.labels, [0, 1])


def test_a_cls_file_wins_over_a_json_file(read):
    for order in (1, -1):
        files = [("0.jpg", "jpeg"), ("0.cls", "3"), ("0.json", '{"label": 1}')][::order]
        assert read(dict(files)).labels.tolist() == [3]
