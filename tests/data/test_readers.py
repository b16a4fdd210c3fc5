"""The same images in every form that holds image files: the same batches, bit for bit; errors."""

import errno
import json
import os
import re
import shutil
import struct
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from data import archives, class_order, datasets, decoding
from data import members as members_of
from data.decoding import BadImageError
from data.holdout import hold_out
from data.loader import Loader
from data.readers import class_folders, find_images, open_dataset
from data.transforms import Preprocessing
from tests.data.forms import FORMS, add, images, shards, tar, write_zip
from training import identity
from utils import UserError

SMALL = Preprocessing(size=32)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("REPARAM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def root(image_folder):
    """Class folders with images below the classes, and names that a sort may get wrong."""
    root = image_folder(train=6, val=3)
    for name in ("a-b", "a", "a.c", "B"):
        (root / "train/apple" / name).mkdir()
        shutil.copy(root / "train/pear/1.jpg", root / "train/apple" / name / "z.jpg")
    (root / "val/pear/.DS_Store").write_bytes(b"\0")
    (root / "val/pear/notes.txt").write_text("-")
    return root


def batches(train, val, workers=0):
    loaders = [Loader(dataset, SMALL, 5, workers) for dataset in (train, val)]
    return [*loaders[0].training(seed=3, epoch=1), *loaders[1].evaluation()]


def assert_same(some, others):
    for batch, other in zip(some, others, strict=True):
        for values, expected in zip(batch, other, strict=True):
            np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_batches_of_class_folders(form, root, tmp_path):
    expected = [class_folders.read(root, split) for split in ("train", "val")]
    data, labels = FORMS[form](root, tmp_path / "form")
    for _ in range(2):  # without an index, and with it
        train = open_dataset(data, "train")
        val = open_dataset(data, "val", labels=labels)
        val = class_order.with_class_order(val, len(train.classes), train.classes)
        assert_same(batches(train, val), batches(*expected))
    assert_same(batches(train, val, workers=2), batches(*expected))
    if not train.numbered:
        assert train.classes == ["apple", "pear", "plum"]
        names = [hold_out(dataset, 0.3, 0)[1].names for dataset in (train, expected[0])]
        assert len(names[0]) == 7
        if "flat" not in form and "shards" not in form:  # which have no folders below the classes
            assert names[0] == names[1]
            assert identity.describe(train, val) == identity.describe(*expected)


# ---------------------------------------------------------------- the index


def test_an_index_is_made_anew_when_its_archive_has_changed(root, tmp_path):
    file = tar(tmp_path / "some/photos.tar", root)
    index = tmp_path / "some/photos.tar.index.json"
    first = open_dataset(file, "val").names
    assert json.loads(index.read_text())["archive"]["size"] == file.stat().st_size
    made = index.stat().st_mtime_ns
    assert open_dataset(file, "val").names == first and index.stat().st_mtime_ns == made
    shutil.copy(root / "val/pear/1.jpg", root / "val/pear/new.jpg")
    tar(file, root)
    assert "pear/new.jpg" in open_dataset(file, "val").names
    expected = class_folders.read(root, "val")
    assert_same(batches(expected, expected), batches(*[open_dataset(file, "val")] * 2))
    text = index.read_text()
    for damage in ("", "[]", text[:-9], text.replace('"offsets":[', "", 1),
                   re.sub(r'"sizes":.\d+', f'"sizes":[{1 << 40}', text)):  # fmt: skip
        index.write_text(damage)
        assert len(open_dataset(file, "val")) == 10


def test_an_index_goes_to_the_cache_where_its_folder_cannot_be_written(root, tmp_path, cache):
    file = tar(tmp_path / "some/photos.tar", root)
    (tmp_path / "some/photos.tar.index.json").mkdir()
    open_dataset(file, "val")
    [index] = cache.iterdir()
    assert index.name.endswith("-photos.tar.index.json")
    made = index.stat().st_mtime_ns
    assert len(open_dataset(file, "val")) == 9 and index.stat().st_mtime_ns == made


def test_a_file_that_is_in_a_tar_twice_is_the_later_one(root, tmp_path):
    file = tar(tmp_path / "photos.tar", root)
    newer = (root / "val/plum/2.jpg").read_bytes()
    with tarfile.open(file, "a") as archive:
        add(archive, "photos/val/pear/1.jpg", newer)
    val = open_dataset(file, "val")
    assert len(val) == 9 and val.images[4].read() == newer


def test_links_in_a_tar_are_the_files_that_they_lead_to(root, tmp_path):
    os.link(root / "val/pear/1.jpg", root / "val/plum/hard.jpg")
    (root / "val/plum/soft.jpg").symlink_to("../pear/1.jpg")
    (root / "val/linked").symlink_to("pear")
    (root / "val/apple/back").symlink_to("..")
    expected = class_folders.read(root, "val")
    found = open_dataset(tar(tmp_path / "photos.tar", root), "val")
    assert found.names == expected.names
    assert {"plum/soft.jpg", "linked/1.jpg"} <= {*found.names}
    assert_same(batches(found, found), batches(expected, expected))


def test_links_that_would_fill_the_memory_are_refused(root, tmp_path):
    for number in range(40):
        (root / f"val/{number}").symlink_to("../train/apple")
    with pytest.raises(UserError, match="lead to more than ten times its files"):
        open_dataset(tar(tmp_path / "photos.tar", root), "val")


# ---------------------------------------------------------------- parts of the data


def test_a_part_is_found_by_its_name(root, tmp_path):
    file = tar(tmp_path / "photos.tar", root)
    assert open_dataset(file, "val").split == "val/" and not open_dataset(file, "val").whole
    assert len(open_dataset(file, "train", exact=True)) == 22
    with pytest.raises(UserError, match="photos.tar has no folder tset/; give one .*: train, val"):
        open_dataset(file, "tset", exact=True)
    only = tar(tmp_path / "only/photos.tar", root / "train")
    with pytest.raises(UserError, match=r"has no folder val/ or .*, --holdout 0\.1 takes a tenth"):
        open_dataset(only, "val")
    (tmp_path / "both").mkdir()
    shutil.copy(file, tmp_path / "both/train.tar")
    write_zip(tmp_path / "both/train.zip", root / "train", 0)
    with pytest.raises(
        UserError, match=r"train.tar and .*train.zip hold the same part of the data"
    ):
        open_dataset(tmp_path / "both", "train")


def test_other_folders_beside_the_parts_are_left_out(root, tmp_path):
    shutil.copytree(root / "val", root / "unlabeled")
    file = tar(tmp_path / "photos.tar", root)
    for split in ("train", "val"):
        found, folder = open_dataset(file, split), open_dataset(root, split)
        assert not found.whole and found.names == folder.names


def test_data_without_parts_needs_holdout_to_train_on(root, tmp_path, command):
    os.rename(root / "train", root / "fruit")
    file = tar(tmp_path / "photos.tar", root / "fruit")
    assert open_dataset(file, "val").whole and len(open_dataset(file, "train")) == 22
    flags = ["--data", file, "--show-samples", tmp_path / "sheet.png", "--size", 32]
    status, _, err = command("train", *flags)
    assert status == 2 and "says which images are for validation; give --holdout 0.1" in err
    status, out, err = command("train", *flags, "--holdout", 0.2)
    assert status == 0 and "samples of photos.tar" in out, err


def test_images_of_an_archive_or_folder(root, tmp_path):
    file = tar(tmp_path / "photos.tar", root)
    folder, archive = find_images(root), find_images(file)
    names = [str(image).removeprefix(f"{file}/") for image in archive]
    assert names == [str(image.relative_to(tmp_path)) for image in folder]
    pixels = tmp_path / "train-images-idx3-ubyte"
    pixels.write_bytes(struct.pack(">IIII", 0x803, 1, 28, 28) + bytes(28 * 28))
    with pytest.raises(UserError, match="holds pixels and no image files"):
        find_images(pixels)


def test_a_tar_of_paths_that_lead_upwards(root, tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for image in find_images(root):
            add(archive, f"../../{image.relative_to(root)}", image.read_bytes())
    found = [open_dataset(tmp_path / "a.tar", split) for split in ("train", "val")]
    expected = [class_folders.read(root, split) for split in ("train", "val")]
    assert_same(batches(*found), batches(*expected))


# ---------------------------------------------------------------- errors


def refused(sentence, *arguments, **named):
    with pytest.raises(UserError, match=sentence) as error:
        open_dataset(*arguments, **named)
    assert len(str(error.value).splitlines()) == 1


def test_a_corrupt_member_is_named_and_can_be_skipped(root, tmp_path):
    (root / "val/pear/1.jpg").write_bytes(b"\xff\xd8 nothing")
    for file in (tar(tmp_path / "a.tar", root), write_zip(tmp_path / "a.zip", root, 8)):
        val = open_dataset(file, "val")
        for workers in (0, 2):
            name = re.escape(f"{file}/photos/val/pear/1.jpg")
            with pytest.raises(BadImageError, match=f"{name} is corrupt or truncated"):
                list(Loader(val, SMALL, 4, workers).evaluation())
            loader = Loader(val, SMALL, 4, workers, skip_bad=True)
            assert sum(len(labels) for _, labels in loader.evaluation()) == 8
            assert loader.skipped == {4}


def test_an_archive_that_shrinks_while_it_is_read_is_named(root, tmp_path):
    file = tar(tmp_path / "a.tar", root)
    val = open_dataset(file, "val")
    os.truncate(file, 2000)
    with pytest.raises(BadImageError, match=r"a.tar/photos/val/apple/0.jpg \(the archive ends bef"):
        list(Loader(val, SMALL, 4, 0).evaluation())


def test_damaged_deflated_data_is_named(root, tmp_path):
    file = write_zip(tmp_path / "a.zip", root, 8)
    member = open_dataset(file, "val").images[3]
    content = bytearray(file.read_bytes())
    content[member.offset : member.offset + 40] = bytes(40)
    file.write_bytes(content)
    with pytest.raises(BadImageError, match=r"a.zip/photos/val/pear/0.jpg \(its compressed data"):
        open_dataset(file, "val").image(3)


@pytest.mark.parametrize("part", ["in a member", "between members", "a header"])
def test_a_truncated_tar_is_named_with_the_last_member(root, tmp_path, part):
    content = tar(tmp_path / "a.tar", root).read_bytes()
    val = open_dataset(tmp_path / "a.tar", "val")
    place = val.images[4]
    end = place.offset + place.size
    cut = {
        "in a member": content[: end - 9],
        "between members": content[: -(-end // 512) * 512],
        "a header": content[: place.offset - 400] + b"?" * 90 + content[place.offset - 310 :],
    }[part]
    (tmp_path / "b.tar").write_bytes(cut)
    refused(r"the tar \S+b.tar is truncated or damaged behind photos/\S+; give a whole copy",
            tmp_path / "b.tar", "val")  # fmt: skip


def test_a_truncated_zip_is_named(root, tmp_path):
    file = write_zip(tmp_path / "a.zip", root, 0)
    os.truncate(file, file.stat().st_size // 2)
    refused(r"the zip \S+a.zip is truncated or damaged", file, "val")


def test_a_missing_shard_is_named(root, tmp_path):
    folder = shards(root, "train", tmp_path, count=4)
    os.remove(folder / "train-0002.tar")
    refused(r"file \S+train-0002.tar of the pattern .* is missing",
            f"{folder}/train-{{0000..0003}}.tar", "train")  # fmt: skip
    refused(r"shard train-0002.tar is missing in", folder, "train")
    refused(r"shard train-0002.tar is missing in", f"{folder}/train-*.tar", "train")
    some = open_dataset(f"{folder}/train-{{0001,0003}}.tar", "train")
    assert 0 < len(some) < 22
    refused("there are no files .*x-", f"{folder}/x-*.tar", "train")
    refused("no file of .* has val or valid or .* in its name; give a pattern of all parts",
            f"{folder}/train-000[01].tar", "val")  # fmt: skip


def test_labels_are_checked(root, tmp_path):
    folder = shards(root, "val", tmp_path / "shards", count=1)
    val = open_dataset(folder, "val")
    with pytest.raises(UserError, match="plum.* has the label 2, but there are the classes 0 to 1"):
        class_order.with_class_order(val, 2, ["apple", "pear"])
    with tarfile.open(folder / "val-0000.tar", "a") as archive:
        add(archive, "more.jpg", (root / "val/pear/1.jpg").read_bytes())
    refused(r"the image \S+val-0000.tar/more.jpg has no label: no .cls of its name", folder, "val")
    with tarfile.open(folder / "val-0000.tar", "a") as archive:
        add(archive, "more.cls", b"-1")
    refused(
        r"more.jpg of \S+val-0000.tar has the label -1, but labels are numbers from 0",
        folder,
        "val",
    )


@pytest.mark.parametrize(
    "names", [["n01440764", "n01443537"], ["cat", "dog"], ["val_cat", "val_dog"]]
)
def test_archives_of_classes_are_no_shards(root, tmp_path, names):
    """Whatever lies beside their images, such as boxes or captions."""
    for name in names:
        with tarfile.open(tmp_path / f"{name}.tar", "w") as archive:
            for image in sorted((root / "val/pear").glob("*.jpg"))[:2]:
                archive.add(image, image.name)
                archive.add(__file__, f"{image.stem}.xml")
    assert open_dataset(tmp_path, "val").classes == names


def test_shards_of_validation_images_may_have_a_list(root, tmp_path):
    images = sorted((root / "val/pear").glob("*.jpg"))[:2]
    for number, image in enumerate(images):
        with tarfile.open(tmp_path / f"val-{number:04d}.tar", "w") as shard:
            shard.add(image, f"{number}.jpg")
    (tmp_path / "labels.txt").write_text("0.jpg pear\n1.jpg apple\n")
    val = open_dataset(tmp_path, "val", labels=tmp_path / "labels.txt")
    assert val.classes == ["apple", "pear"] and sorted(val.labels) == [0, 1]


@pytest.mark.parametrize("name", ["train-0{}.tar", "part{}.tar"])
def test_shards_without_labels_are_no_classes(root, tmp_path, name):
    """Captions alone, as for CLIP; the names of the shards were taken for classes."""
    image = next((root / "train/pear").glob("*.jpg"))
    for number in range(2):
        with tarfile.open(tmp_path / name.format(number), "w") as shard:
            shard.add(image, f"{number}.jpg")
            if name.startswith("part"):
                shard.add(image, f"{number}.txt")
    with pytest.raises(UserError, match=r"0.tar and the others have no labels, neither by a .cls"):
        open_dataset(tmp_path, "train")


def test_lists_are_checked(root, tmp_path):
    flat, files = tmp_path / "flat", []
    flat.mkdir()
    for name, below, file in images(root, "val"):
        files.append(f"{name}_{below}")
        shutil.copy(file, flat / files[-1])
    refused(r"flat are in no class folders; put .*give their labels by --val-list", flat, "val")
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join(f"{file} 1" for file in files[1:]))
    refused(rf"the image {files[0]} of \S+flat has no label in \S+labels.txt", flat, "val",
            labels=labels)  # fmt: skip
    labels.write_text("\n".join([*(f"val/{file},pear" for file in files), "gone.JPEG plum"]))
    val = open_dataset(flat, "val", labels=labels)
    assert val.classes == ["pear"] and val.left_out.missing == 1
    [warning] = datasets.left_out([val])
    assert "1 label of images that are not there" in warning
    refused(r"images in \S+a.tar are in no class", tar(tmp_path / "a.tar", flat, "./"), "val")
    assert len(open_dataset(tmp_path / "a.tar", "val", labels=labels)) == 9
    assert len(open_dataset(tar(tmp_path / "b.tar", flat, "val"), "val", labels=labels)) == 9
    labels.write_text("apple_0.jpg\n")
    refused(r"line 1 of \S+labels.txt is not NAME LABEL", flat, "val", labels=labels)
    refused("cannot read the labels", flat, "val", labels=tmp_path / "none")
    labels.write_text("a 1")
    refused("has labels of its own", root, "val", labels=labels)


def test_what_is_no_data_is_refused_by_name(root, tmp_path):
    tar(tmp_path / "a.tar", root)
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        archive.add(root)
    refused(r"a.tar.gz is compressed \(gzip\); decompress it", tmp_path / "a.tar.gz", "val")
    (tmp_path / "b.bin").write_bytes(b"text")
    refused("b.bin is no archive of images", tmp_path / "b.bin", "val")
    refused("there is no data folder", tmp_path / "none", "val")
    with tarfile.open(tmp_path / "empty.tar", "w") as archive:
        add(archive, "README", b"-")
    refused("empty.tar has no images in it", tmp_path / "empty.tar", "val")
    assert archives.kind(tmp_path / "a.tar") == "tar"
    with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
        archive.write(root / "val/pear/1.jpg", "cat/1.jpg")
    refused("cat/1.jpg in the zip .* compressed otherwise than by deflate", tmp_path / "lzma.zip",
            "val")  # fmt: skip


def test_archives_with_the_same_files_are_refused(root, tmp_path):
    shutil.copy(tar(tmp_path / "some/train.tar", root / "train"), tmp_path / "some/train-copy.tar")
    refused(r"train-copy.tar and \S+train.tar both have apple/", tmp_path / "some", "train")
    assert len(open_dataset(f"{tmp_path}/some/train.tar", "train")) == 22


def test_an_archive_named_for_two_parts_is_neither(root, tmp_path, command):
    file = tar(tmp_path / "pets/train_val.tar", root / "train", "pets")
    assert all(open_dataset(file.parent, split).whole for split in ("train", "val"))
    status, _, err = command("train", "--data", file.parent, "--show-samples", tmp_path / "a.png")
    assert status == 2 and "says which images are for validation; give --holdout 0.1" in err
    tar(file, root)
    assert not open_dataset(file.parent, "val").whole and len(open_dataset(file.parent, "val")) == 9
    tar(tmp_path / "pets/test.tar", root / "val")
    assert open_dataset(file.parent, "val").images[0].archive.endswith("test.tar")
    assert not open_dataset(file.parent, "train").whole  # as the other part is in a file of its own
    named = tar(tmp_path / "named/val_v2.tar", root / "val", "photos")
    assert len(open_dataset(named.parent, "val_v2", exact=True)) == 9


def test_tars_that_were_joined_to_one_file_are_refused(root, tmp_path):
    content = b"".join(tar(tmp_path / f"{n}.tar", root).read_bytes() for n in range(2))
    (tmp_path / "joined.tar").write_bytes(content)
    refused(r"the tar \S+joined.tar goes on behind its end", tmp_path / "joined.tar", "val")


@pytest.mark.parametrize("damage", ["a name that is no UTF-8", "a version to come"])
def test_a_damaged_directory_of_a_zip_is_a_sentence(root, tmp_path, damage):
    file = write_zip(tmp_path / "a.zip", root, 0)
    content = bytearray(file.read_bytes())
    entry = content.index(b"PK\1\2")
    if damage == "a version to come":
        content[entry + 6] = 99
    else:
        content[entry + 9] |= 8  # the name is said to be UTF-8
        content[entry + 46] = 0xFF
    file.write_bytes(content)
    refused(r"the zip \S+a.zip is truncated or damaged", file, "val")


def test_no_more_archives_are_open_than_a_process_may_have(root, tmp_path, monkeypatch):
    content = (root / "val/pear/1.jpg").read_bytes()
    files = [tmp_path / f"{number:03}.tar" for number in range(80)]
    for file in files:
        with tarfile.open(file, "w") as archive:
            add(archive, "pear/1.jpg", content)
    members = [image for file in files for image in find_images(file)]
    monkeypatch.setattr(members_of, "_open", {})
    for member in members[:40]:
        member.read()
    assert len(members_of._open) == 40  # and none is opened again
    before = len(os.listdir("/proc/self/fd"))
    with ThreadPoolExecutor(16) as pool:
        assert {*pool.map(decoding.read, members * 4)} == {content}
    assert len(os.listdir("/proc/self/fd")) <= before + 64


def test_too_many_open_files_are_no_fault_of_an_image(root, tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match="allow more open files by ulimit -n") as error:
        decoding.read(root / "val/pear/1.jpg")
    assert not isinstance(error.value, BadImageError)
