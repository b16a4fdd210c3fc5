"""Data sets: the digits, folders of images, and what is wrong with them."""

import os

import cv2
import numpy as np
import pytest

from data import datasets
from data.datasets import BadImageError
from data.loader import Loader
from data.transforms import Preprocessing
from utils import UserError


def test_the_digits_are_split_once_and_for_all():
    train, val = datasets.digits()
    assert (len(train), len(val)) == (1437, 360)
    assert train.image(0).shape == (32, 32, 3)
    assert len(set(val.labels)) == 10 and val.classes == list("0123456789")
    again = datasets.digits()[1]
    np.testing.assert_array_equal(val.images, again.images)


def test_an_image_folder_is_read_in_order(image_folder):
    root = image_folder()
    train, val = datasets.image_folder(root, "train"), datasets.image_folder(root, "val")
    assert train.classes == ["apple", "pear", "plum"]
    assert len(train) == 48 and len(val) == 15
    assert val.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert val.image(7).dtype == np.uint8
    assert val.image(7)[..., 1].mean() > 150 > val.image(7)[..., 0].mean()  # pears are green
    os.rename(root / "val", root / "test")
    assert len(datasets.image_folder(root, "val")) == 15


def test_what_is_missing_is_named(image_folder, tmp_path):
    with pytest.raises(UserError, match="there is no data folder"):
        datasets.image_folder(tmp_path / "none", "train")
    with pytest.raises(UserError, match="has no val/ or test/"):
        (tmp_path / "half" / "train").mkdir(parents=True)
        datasets.image_folder(tmp_path / "half", "val")
    with pytest.raises(UserError, match="has no class folders"):
        datasets.image_folder(tmp_path / "half", "train")
    root = image_folder()
    (root / "train" / "quince").mkdir()
    (root / "train" / "quince" / "notes.txt").write_text("none yet")
    with pytest.raises(UserError, match="quince has no images"):
        datasets.image_folder(root, "train")


@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "header"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_broken_image_is_named(tmp_path, rng, damage, suffix):
    path = tmp_path / f"broken{suffix}"
    cv2.imwrite(str(path), rng.integers(0, 256, (64, 64, 3), np.uint8))
    whole = path.read_bytes()
    assert datasets.decode(path).shape == (64, 64, 3)
    cut = {"truncated": whole[: len(whole) // 2], "empty": b"", "noise": rng.bytes(500)}
    path.write_bytes(cut.get(damage, whole[:30]))
    with pytest.raises(BadImageError, match=f"the image .*broken{suffix} is corrupt or truncated"):
        datasets.decode(path)


def test_a_jpeg_cut_after_its_thumbnail_is_still_seen_as_cut(tmp_path, rng):
    """An EXIF thumbnail is a JPEG within the JPEG, with an end marker of its own."""
    thumbnail = cv2.imencode(".jpg", rng.integers(0, 256, (16, 16, 3), np.uint8))[1].tobytes()
    whole = cv2.imencode(".jpg", rng.integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "camera.jpg"
    path.write_bytes(whole[:2] + segment + whole[2:])
    assert datasets.decode(path).shape == (64, 64, 3)
    path.write_bytes((whole[:2] + segment + whole[2:])[:-500])
    with pytest.raises(BadImageError):
        datasets.decode(path)


def test_bad_images_are_skipped_with_a_count_on_request(image_folder):
    root = image_folder()
    (root / "val" / "pear" / "2.jpg").write_bytes(b"\xff\xd8 nothing")
    val = datasets.image_folder(root, "val")
    preprocessing = Preprocessing(size=32)
    with pytest.raises(BadImageError, match=r"pear/2\.jpg"):
        list(Loader(val, preprocessing, 4).evaluation())
    loader = Loader(val, preprocessing, 4, skip_bad=True)
    labels = np.concatenate([labels for _, labels in loader.evaluation()])
    assert labels.tolist() == [0] * 5 + [1] * 4 + [2] * 5
    assert len(loader.skipped) == 1


def test_evaluation_counts_each_image_once_and_in_order(image_folder):
    val = datasets.image_folder(image_folder(), "val")
    for batch, workers in ((4, 1), (15, 3), (100, 2)):
        batches = list(Loader(val, Preprocessing(size=32), batch, workers).evaluation())
        assert np.concatenate([labels for _, labels in batches]).tolist() == val.labels.tolist()
        assert all(images.dtype == np.float32 for images, _ in batches)


def test_an_epoch_entered_in_the_middle_goes_on_as_it_would_have(image_folder):
    train = datasets.image_folder(image_folder(), "train")
    one, two = (Loader(train, Preprocessing(size=32), 5, workers) for workers in (1, 3))
    whole = list(one.training(seed=3, epoch=1))
    assert len(whole) == 48 // 5
    for (images, labels), (again, labels_again) in zip(
        whole[4:], two.training(seed=3, epoch=1, skip=4), strict=True
    ):
        np.testing.assert_array_equal(images, again)
        np.testing.assert_array_equal(labels, labels_again)
    other = next(iter(one.training(seed=3, epoch=2)))
    assert not np.array_equal(other[0], whole[0][0])


def test_labels_follow_the_network(image_folder, tmp_path):
    wnids = datasets.imagenet_wnids()
    assert len(wnids) == 1000 and sorted(wnids) == wnids
    assert (wnids[0], wnids[217], wnids[701]) == ("n01440764", "n02102040", "n03888257")
    root = image_folder(tmp_path / "imagenette", classes=("n01440764", "n02102040", "n03888257"))
    subset = datasets.image_folder(root, "val")
    over_all = datasets.with_class_order(subset, 1000, None)
    assert over_all.labels.tolist() == [0] * 5 + [217] * 5 + [701] * 5
    own = datasets.with_class_order(subset, 3, ["n03888257", "n02102040", "n01440764"])
    assert own.labels.tolist() == [2] * 5 + [1] * 5 + [0] * 5
    assert datasets.with_class_order(subset, 3, None).labels.tolist() == subset.labels.tolist()
    with pytest.raises(UserError, match="has 3 classes, but the network was trained on 10"):
        datasets.with_class_order(subset, 10, None)
    with pytest.raises(UserError, match="does not know 'n01440764'"):
        datasets.with_class_order(subset, 2, ["cat", "dog"])
