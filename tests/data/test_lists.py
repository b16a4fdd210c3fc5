"""Lists of labels: which label is whose, and what cannot be told apart."""

import pytest
from PIL import Image

from data import readers
from data.readers import lists
from utils import UserError


@pytest.mark.parametrize(
    "text, labels",
    [
        ("a.jpg,golden retriever\nb.jpg,golden eagle\n", ["golden eagle", "golden retriever"]),
        ("ImageId,PredictionString\na,n02 1 2 3 4 n02 5 6 7 8\nb,n01 1 2 3 4\n", ["n01", "n02"]),
        ("id,label\na.jpg,1\nb.jpg,0\n", [0, 1]),
        ("path,label\na.jpg,1\nb.jpg,0\n", [0, 1]),
        ("image_name,label\na.jpg,1\nb.jpg,0\n", [0, 1]),
        ("image,width,height,label\na.jpg,640,480,1\nb.jpg,10,10,0\n", [0, 1]),
        ("class,filename,set\ncat,a.jpg,val\nant,b.jpg,val\n", ["ant", "cat"]),
        ("a.jpg,1,\nb.jpg,0,\n", [0, 1]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_table_keeps_its_labels(text, labels, encoding, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text(text, encoding=encoding)
    assert lists.read_labels(file).of == {"a": labels[1], "b": labels[0]}


def test_a_list_that_is_no_text_is_a_sentence(tmp_path):
    file = tmp_path / "list.csv"
    file.write_bytes(b"a.jpg,1\nb\0.jpg,0\n")
    with pytest.raises(UserError, match="line 2 of .* is not NAME LABEL"):
        lists.read_labels(file)


def test_one_label_is_no_header(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("a.jpg cat\n")
    assert lists.read_labels(file).of == {"a": "cat"}


def test_a_name_with_two_labels_is_a_sentence(tmp_path):
    file = tmp_path / "list.txt"
    file.write_text("cat/1.jpg 0\ndog/1.jpg 1\n")
    with pytest.raises(UserError, match="gives 1 the labels '0' and '1'"):
        lists.read_labels(file)
    file.write_text("cat/1.jpg 1\ndog/1.jpg 1\n")
    assert lists.read_labels(file).of == {"1": 1}


def test_images_that_a_list_cannot_tell_apart_are_a_sentence(tmp_path):
    (tmp_path / "val").mkdir()
    for name in ("2.jpg", "2.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / "val" / name)
    (tmp_path / "val_list.txt").write_text("2.jpg 0\n")
    with pytest.raises(UserError, match="two images that a list cannot tell apart"):
        readers.open_dataset(tmp_path, "val")


@pytest.mark.parametrize(
    "text, said",
    [
        ("a.jpg,640,480,1\n", "line 1 of .* is not NAME LABEL"),
        (
            "image,width,height\na.jpg,640,480\n",
            "the columns image, width, height, but exactly",
        ),
        ("image,label,class\na.jpg,1,cat\n", "has the columns image, label, class, but exactly"),
    ],
)
def test_a_table_whose_label_is_not_told_is_a_sentence(text, said, tmp_path):
    file = tmp_path / "list.csv"
    file.write_text(text)
    with pytest.raises(UserError, match=said):
        lists.read_labels(file)


def test_training_images_do_not_get_the_labels_of_validation(tmp_path):
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        for name in ("1.jpg", "2.jpg"):
            Image.new("RGB", (8, 8)).save(tmp_path / split / name)
    (tmp_path / "val.txt").write_text("1.jpg 0\n2.jpg 1\n")
    with pytest.raises(UserError, match="put them into class folders, or put train_label.txt"):
        readers.open_dataset(tmp_path, "train")
    (tmp_path / "train.txt").write_text("1.jpg 1\n2.jpg 0\n")
    assert readers.open_dataset(tmp_path, "train").names == ["0/2.jpg", "1/1.jpg"]
    assert readers.open_dataset(tmp_path, "val").names == ["0/1.jpg", "1/2.jpg"]
