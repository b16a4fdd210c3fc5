"""CIFAR's and MNIST's original files: pixels, labels, and what goes wrong."""

import gzip
import io
import pickle
import struct
import tarfile
from typing import ClassVar

import numpy as np
import pytest

from data.datasets import DIGITS
from data.holdout import hold_out
from data.loader import Loader
from data.readers import open_dataset
from data.transforms import Preprocessing
from tests.data.forms import add
from utils import UserError

RNG = np.random.default_rng(0)
NAMES = [f"class{label}" for label in range(10)]


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 wrote its strings, as in CIFAR's files."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        content = value.encode() if isinstance(value, str) else value
        self.write(pickle.BINSTRING + struct.pack("<i", len(content)) + content)
        self.memoize(value)

    dispatch[str] = dispatch[bytes] = save_string


def pickled(value):
    file = io.BytesIO()
    Python2Pickler(file, 2).dump(value)
    return file.getvalue()


def cifar10(form, count=6):
    """Files of CIFAR-10 in a form, and the images [N, 3, 32, 32] and labels of each part."""
    files, parts = {}, {"train": [], "val": []}
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        images = RNG.integers(0, 256, (count, 3072), np.uint8)
        labels = RNG.integers(0, 10, count)
        if form == "py":
            table = {"batch_label": "b", "labels": labels.tolist(), "data": images,
                     "filenames": ["x.png"] * count}  # fmt: skip
            files[name] = pickled(table)
        else:
            rows = np.concatenate([labels[:, None].astype(np.uint8), images], axis=1)
            files[f"{name}.bin"] = rows.tobytes()
        parts["val" if name == "test_batch" else "train"].append((images, labels))
    if form == "py":
        files["batches.meta"] = pickled({"num_cases_per_batch": count, "label_names": NAMES})
    else:
        files["batches.meta.txt"] = "\n".join([*NAMES, ""]).encode()
    return files, {
        split: [np.concatenate(values) for values in zip(*some, strict=True)]
        for split, some in parts.items()
    }


def cifar100(form):
    images = RNG.integers(0, 256, (7, 3072), np.uint8)
    fine, coarse = RNG.integers(97, 100, 7), RNG.integers(0, 20, 7)
    names = [f"fine{label}" for label in range(100)]
    if form == "py":
        batch = {"data": images, "fine_labels": fine.tolist(), "coarse_labels": coarse.tolist()}
        meta = {"fine_label_names": names, "coarse_label_names": ["c"] * 20}
        files = {"train": pickled(batch), "test": pickled(batch), "meta": pickled(meta)}
    else:
        rows = np.concatenate([coarse[:, None], fine[:, None], images], axis=1).astype(np.uint8)
        files = {"train.bin": rows.tobytes(), "test.bin": rows.tobytes(),
                 "fine_label_names.txt": "\n".join(names).encode()}  # fmt: skip
    return files, {"train": (images, fine), "val": (images, fine)}


def write(root, files, folder, packed):
    if packed:
        with tarfile.open(root / "cifar.tar.gz", "w:gz") as archive:
            for name, content in files.items():
                add(archive, f"{folder}/{name}", content)
        return root / "cifar.tar.gz"
    (root / folder).mkdir()
    for name, content in files.items():
        (root / folder / name).write_bytes(content)
    return root / folder


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("form", ["py", "bin"])
@pytest.mark.parametrize("make, folder", [(cifar10, "cifar-10-batches"), (cifar100, "cifar-100")])
def test_cifar(tmp_path, make, folder, form, packed):
    files, parts = make(form)
    root = write(tmp_path, files, f"{folder}-{form}", packed)
    for path in {root, root if packed else root.parent}:
        for split, (images, labels) in parts.items():
            dataset = open_dataset(path, split)
            assert dataset.labels.tolist() == labels.tolist()
            expected = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)[..., ::-1]
            np.testing.assert_array_equal(dataset.images, expected)
            assert dataset.classes[:2] in (NAMES[:2], ["fine0", "fine1"])
            assert dataset.split == ("train/" if split == "train" else "test/")
    batches = Loader(dataset, Preprocessing(size=32), 2, workers=2).training(0, 0)
    assert next(batches)[0].shape == (2, 3, 32, 32)
    assert sum(map(len, hold_out(open_dataset(root, "train"), 0.5, 0))) == len(parts["train"][1])


def refused(sentence, path, split="val", labels=None):
    with pytest.raises(UserError, match=sentence) as error:
        open_dataset(path, split, labels=labels)
    assert len(str(error.value).splitlines()) == 1


class Hostile:
    def __reduce__(self):
        return eval, ("1 / 0",)


def test_damaged_and_hostile_files_of_cifar_are_named(tmp_path):
    files, _ = cifar10("py")
    root = write(tmp_path, files, "cifar-10-batches-py", False)
    batch = root / "test_batch"
    batch.write_bytes(pickle.dumps({"data": Hostile()}))
    refused(r"test_batch asks for builtins.eval, .* nothing in it was executed", root)
    batch.write_bytes(files["test_batch"][:-999])
    refused(r"test_batch is empty, truncated or not", root)
    batch.write_bytes(pickled({"labels": [1]}))
    refused(r"test_batch is truncated or damaged \(it has no images\)", root)
    table = {"labels": [1, 10], "data": np.zeros((2, 3072), np.uint8)}
    batch.write_bytes(pickled(table))
    refused(r"test_batch is .* \(its labels are not one of 10 for each image\)", root)
    (root / "data_batch_3").unlink()
    refused("the file data_batch_3 of CIFAR-10 is missing in", root, "train")
    binary = write(tmp_path, cifar10("bin")[0], "cifar-10-batches-bin", False)
    (binary / "test_batch.bin").write_bytes(bytes(3072))
    refused(r"test_batch.bin is .* \(its size is no multiple of 3073\)", binary)


# ---------------------------------------------------------------- MNIST


def idx(array):
    sides = b"".join(struct.pack(">I", side) for side in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sides + array.astype(np.uint8).tobytes()


def mnist(root, packed=True, first=(5, 0, 4, 1, 9, 2, 1, 3, 1, 4)):
    root.mkdir()
    expected = {}
    for split, name, count in (("train", "train", 20), ("val", "t10k", 12)):
        images = RNG.integers(0, 256, (count, 28, 28), np.uint8)
        labels = np.concatenate([first, RNG.integers(0, 10, count - 10)])
        for what, array in (("images-idx3", images), ("labels-idx1", labels)):
            content = idx(array)
            file = root / f"{name}-{what}-ubyte{'.gz' if packed else ''}"
            file.write_bytes(gzip.compress(content) if packed else content)
        expected[split] = images, labels
    return expected


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path, packed):
    for split, (images, labels) in mnist(tmp_path / "mnist", packed).items():
        dataset = open_dataset(tmp_path / "mnist", split)
        assert (dataset.name, dataset.augment) == ("MNIST", DIGITS)  # digits are not mirrored
        np.testing.assert_array_equal(dataset.images, np.repeat(images[..., None], 3, -1))
        assert dataset.labels.tolist() == labels.tolist() and dataset.classes == [*"0123456789"]
    single = next((tmp_path / "mnist").glob("t10k-images*"))
    assert len(open_dataset(single, "val")) == 12


def test_a_list_for_images_that_have_labels_is_refused(tmp_path):
    (tmp_path / "labels.txt").write_text("0.png 1\n")
    files, _ = cifar10("py")
    mnist(tmp_path / "mnist", False)
    for root in (write(tmp_path, files, "cifar-10-batches-py", False), tmp_path / "mnist"):
        refused("has labels of its own, .*leave --val-list", root, labels=tmp_path / "labels.txt")


def test_fashion_mnist_is_told_by_its_first_labels(tmp_path):
    mnist(tmp_path / "some", first=(9, 0, 0, 3, 0, 2, 7, 2, 5, 5))
    dataset = open_dataset(tmp_path / "some", "train")
    assert dataset.name == "Fashion-MNIST" and dataset.classes[9] == "Ankle boot"
    assert dataset.augment.flip == 0.5 and not dataset.augment.affine


def test_damaged_files_of_mnist_are_named(tmp_path):
    root = tmp_path / "mnist"
    mnist(root, packed=False)
    images, labels = sorted(root.glob("t10k*"))
    images.write_bytes(images.read_bytes()[:-1])
    refused(r"t10k-images-idx3-ubyte is truncated or damaged \(it has 9407 bytes", root)
    images.write_bytes(idx(np.zeros((5, 28, 28))))
    refused(r"images-idx3-ubyte has 5 images and .*labels-idx1-ubyte 12 labels", root)
    labels.unlink()
    refused("t10k-images-idx3-ubyte are not one file of images and one", root)
