"""ImageNet as its authors distribute it: a tar of tars, a flat tar, and the development kit."""

import io
import tarfile

import numpy as np
import pytest
from scipy.io import savemat

from data import class_names, class_order
from data.readers import open_dataset
from tests.data.forms import add
from utils import UserError

# ILSVRC2012_ID -> wnid: an order of its own, as in the real kit; the last is no class but a parent
SYNSETS = ["n03888257", "n01440764", "n02102040", "n00001740"]
TRUTH = [2, 1, 3, 3, 1]  # of the five validation images


def meta(synsets):
    """A meta.mat as MATLAB writes it: an array of structs."""
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"),
             ("num_children", "O"), ("children", "O"), ("wordnet_height", "O"),
             ("num_train_images", "O")]  # fmt: skip
    rows = np.empty((len(synsets), 1), kinds)
    for number, wnid in enumerate(synsets, start=1):
        rows[number - 1, 0] = (float(number), wnid, "a, b", "c", 0.0, np.empty((1, 0)), 0.0, 1300.0)
    content = io.BytesIO()
    savemat(content, {"synsets": rows})
    return content.getvalue()


@pytest.fixture
def root(image_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("REPARAM_CACHE", str(tmp_path / "cache"))
    photos = image_folder(classes=SYNSETS[:3], train=4, val=3)
    root = tmp_path / "ILSVRC2012"
    root.mkdir()
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as archive:
        for wnid in SYNSETS[:3]:
            inner = io.BytesIO()
            with tarfile.open(fileobj=inner, mode="w") as part:
                for number in (10, 2, 1, 3):
                    content = (photos / "train" / wnid / f"{number % 4}.jpg").read_bytes()
                    add(part, f"{wnid}_{number}.JPEG", content)
            add(archive, f"{wnid}.tar", inner.getvalue())
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as archive:
        for number, label in reversed([*enumerate(TRUTH, start=1)]):
            content = (photos / "val" / SYNSETS[label - 1] / f"{number % 3}.jpg").read_bytes()
            add(archive, f"ILSVRC2012_val_{number:08d}.JPEG", content)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as archive:
        folder = "ILSVRC2012_devkit_t12"
        add(archive, f"{folder}/readme.txt", b"-")
        add(archive, f"{folder}/data/meta.mat", meta(SYNSETS))
        truth = "".join(f"{label}\n" for label in TRUTH).encode()
        add(archive, f"{folder}/data/ILSVRC2012_validation_ground_truth.txt", truth)
    return root


def test_classes_are_in_the_order_of_the_wnids_and_not_in_that_of_the_kit(root):
    train, val = open_dataset(root, "train"), open_dataset(root, "val")
    assert train.classes == val.classes == ["n01440764", "n02102040", "n03888257"]
    assert train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert train.names[:4] == [f"n01440764/n01440764_{n}.JPEG" for n in (1, 10, 2, 3)]
    assert str(train.images[0]).endswith("img_train.tar/n01440764.tar/n01440764_1.JPEG")
    assert [name[-6] for name in val.names] == ["1", "3", "4", "2", "5"]
    assert val.labels.tolist() == [0, 1, 1, 2, 2]
    for index in range(len(val)):  # these images tell their class by a colour
        channel = SYNSETS.index(val.classes[val.labels[index]])
        assert val.image(index).mean((0, 1)).argmax() == channel
    scored = class_order.with_class_order(val, 1000, None)
    assert scored.labels.tolist() == [0, 217, 217, 701, 701]
    wnids = list(class_names.imagenet_classes())
    assert [wnids[label] for label in scored.labels] == [val.classes[label] for label in val.labels]


def test_the_kit_may_be_unpacked_or_given(root, tmp_path):
    expected = open_dataset(root, "val")
    kit = root / "ILSVRC2012_devkit_t12.tar.gz"
    moved = kit.rename(tmp_path / "kit.tgz")
    with pytest.raises(UserError, match="img_val.tar are in no class folders; put .* --val-list"):
        open_dataset(root, "val")
    assert open_dataset(root, "val", labels=moved).names == expected.names
    assert open_dataset(root / "ILSVRC2012_img_val.tar", "val", labels=moved).names
    with tarfile.open(moved) as archive:
        archive.extractall(root)
    assert open_dataset(root, "val").names == expected.names


def test_a_damaged_kit_is_named(root):
    kit = root / "ILSVRC2012_devkit_t12.tar.gz"
    with tarfile.open(kit, "w:gz") as archive:
        add(archive, "kit/data/meta.mat", meta(SYNSETS)[:-40])
        add(archive, "kit/data/ILSVRC2012_validation_ground_truth.txt", b"1\n2\n")
    with pytest.raises(UserError, match="devkit_t12.tar.gz is no whole development kit"):
        open_dataset(root, "val")
