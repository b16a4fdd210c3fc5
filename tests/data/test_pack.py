"""python -m data.pack: the same images in one tar, smaller on request; resumed and checked."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

import utils
from data import datasets, pack, resizing, tar_writer
from data.decoding import decode, decode_content
from data.readers import class_folders, open_dataset
from tests.data.forms import shards, tar
from tests.data.test_readers import assert_same, batches, cache, root  # noqa: F401
from tests.support import ROOT
from training import identity


@pytest.fixture
def run(capfd):
    def run(*arguments):
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            utils.run(lambda: pack.main([str(argument) for argument in arguments]))
        return leaving.value.code, *capfd.readouterr()

    return run


def test_packed_images_are_the_same(root, tmp_path, run):  # noqa: F811
    expected = [class_folders.read(root, split) for split in ("train", "val")]
    status, out, err = run(root, tmp_path / "a.tar")
    assert status == 0, err
    assert "a.tar: 31 images, 0.00 GB, as they are; all read back as written" in out
    found = [open_dataset(tmp_path / "a.tar", split) for split in ("train", "val")]
    assert_same(batches(*found), batches(*expected))
    assert identity.describe(*found) == identity.describe(*expected)
    assert datasets.left_out(found) == []  # the list of checksums is none of the images
    status, out, _ = run(root, tmp_path / "a.tar")
    assert status == 0 and "is there already, packed from the same images" in out
    status, _, err = run(root, tmp_path / "a.tar", "--size", 20)
    assert status == 2 and "a.tar is there already, and of other images or settings" in err
    sums = subprocess.run(["tar", "xf", "a.tar"], cwd=tmp_path, check=True)
    english = {**os.environ, "LC_ALL": "C"}
    check = ["sha256sum", "-c", "SHA256SUMS"]
    sums = subprocess.run(check, cwd=tmp_path, capture_output=True, env=english)
    assert sums.returncode == 0 and sums.stdout.count(b": OK") == 31


def test_other_forms_are_packed_too(root, tmp_path, run):  # noqa: F811
    for split in ("train", "val"):
        shards(root, split, tmp_path / "shards")
    assert run(tmp_path / "shards", tmp_path / "a.tar")[0] == 0
    found = [open_dataset(tmp_path / "a.tar", split) for split in ("train", "val")]
    expected = [class_folders.read(root, split) for split in ("train", "val")]
    assert_same(batches(*found), batches(*expected))
    whole = tar(tmp_path / "whole.tar", root / "train", "fruit")
    assert run(whole, tmp_path / "b.tar")[0] == 0
    packed = open_dataset(tmp_path / "b.tar", "train")
    assert packed.whole and packed.names == open_dataset(whole, "train").names


def test_images_that_have_changed_are_other_images(root, tmp_path, run):  # noqa: F811
    assert run(root, tmp_path / "a.tar")[0] == 0
    file = root / "train/pear/1.jpg"
    file.write_bytes((root / "train/pear/0.jpg").read_bytes())
    os.utime(file, ns=(1, 1))
    status, _, err = run(root, tmp_path / "a.tar")
    assert status == 2 and "a.tar is there already, and of other images or settings" in err
    archives = tmp_path / "archives"
    for split in ("train", "val"):
        tar(archives / f"{split}.tar", root / split)
    assert run(archives, tmp_path / "b.tar")[0] == 0
    os.utime(archives / "val.tar", ns=(1, 1))
    assert run(archives, tmp_path / "b.tar")[0] == 2


def test_only_a_part_that_is_not_there_is_left_out(root, tmp_path, run):  # noqa: F811
    """Nor is a damaged one packed in silence."""
    for split in ("train", "val"):
        tar(tmp_path / f"archives/{split}.tar", root / split)
    (root / "train/empty").mkdir()
    status, _, err = run(root, tmp_path / "a.tar")
    assert status == 2 and "train/empty has no images" in err and len(err.splitlines()) == 1
    train = tmp_path / "archives/train.tar"
    content = train.read_bytes()
    train.write_bytes(content[: len(content) // 2])
    status, _, err = run(tmp_path / "archives", tmp_path / "a.tar")
    assert status == 2 and "train.tar" in err and not (tmp_path / "a.tar").exists()
    (root / "train").rename(tmp_path / "away")
    status, out, _ = run(root, tmp_path / "a.tar")
    assert status == 0 and "warning: there is no training set to pack: the data folder" in out


def test_a_part_without_labels_is_left_out_with_a_warning(root, tmp_path, run):  # noqa: F811
    """Kaggle's test images, whose labels nobody has."""
    for file in (root / "val").rglob("*.jpg"):
        file.rename(root / f"val/{file.parent.name}{file.name}")
    for folder in (root / "val").iterdir():
        if folder.is_dir():
            shutil.rmtree(folder)
    status, out, _ = run(root, tmp_path / "a.tar")
    assert status == 0 and "warning: there is no validation set to pack: the images in" in out


def test_corrected_labels_of_pixels_are_other_data(root, tmp_path):  # noqa: F811
    train, _ = datasets.digits()
    first = pack._digest(train)
    assert pack._digest(replace(train, labels=train.labels[::-1])) != first
    assert pack._digest(train) == first


@pytest.mark.parametrize(
    "flags, message",
    [
        (["a.tar", "--quality", 80], "give --size PIXELS too"),
        (["--check", "--size", 48], "--check takes SRC alone"),
        (["--check", "--skip-bad-images"], "--check takes SRC alone"),
    ],
)
def test_flags_without_effect_are_refused(root, run, flags, message):  # noqa: F811
    status, out, err = run(root, *flags)
    assert (status, out) == (2, "") and message in err


def test_larger_images_are_made_smaller_once(root, tmp_path, run):  # noqa: F811
    rng = np.random.default_rng(0)
    for name, shape in (("wide.png", (60, 91, 3)), ("high.jpg", (121, 60, 3))):
        cv2.imwrite(str(root / "val/pear" / name), rng.integers(0, 256, shape, np.uint8))
    status, out, err = run(root, tmp_path / "a.tar", "--size", 48, "--quality", 90)
    assert status == 0, err
    assert "larger ones at a short side of 48 px as JPEG of quality 90" in out
    val = open_dataset(tmp_path / "a.tar", "val")
    images = dict(zip(val.names, val.images, strict=True))
    for name, size in (("wide.png", (48, 73)), ("high.jpg", (97, 48))):
        packed = name.replace(".png", ".png.jpg")
        image = resizing.by_pillow(decode(root / "val/pear" / name), *size[::-1], "bicubic")
        encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
        assert images[f"pear/{packed}"].read() == encoded
        assert decode_content(encoded, name).shape[:2] == size
    assert images["pear/1.jpg"].read() == (root / "val/pear/1.jpg").read_bytes()  # 40 px


def test_bad_images_stop_it_or_are_skipped(root, tmp_path, run):  # noqa: F811
    (root / "val/pear/1.jpg").write_bytes(b"\xff\xd8 nothing")
    status, _, err = run(root, tmp_path / "a.tar", "--size", 32)
    assert status == 2 and "pear/1.jpg is corrupt" in err and len(err.splitlines()) == 1
    assert not (tmp_path / "a.tar").exists()
    status, out, _ = run(root, tmp_path / "a.tar", "--size", 32, "--skip-bad-images")
    assert status == 0 and "1 bad images were skipped, the first of them val/pear/1.jpg" in out
    assert len(open_dataset(tmp_path / "a.tar", "val")) == 8


def test_an_image_is_not_taken_for_another_one_made_smaller(root, tmp_path, run):  # noqa: F811
    cv2.imwrite(str(root / "val/pear/a.png"), np.zeros((99, 99, 3), np.uint8))
    (root / "val/pear/a.png.jpg").write_bytes((root / "val/pear/1.jpg").read_bytes())
    for _ in range(2):
        status, _, err = run(root, tmp_path / "a.tar", "--size", 32)
        assert status == 2 and "two images are named val/pear/a.png.jpg" in err


SLOWLY = """
import sys, time
sys.path.insert(0, sys.argv[1])
from data import pack, tar_writer
tar_writer._BETWEEN_SAVES = 1
add = tar_writer._add
tar_writer._add = lambda *arguments: (add(*arguments), print("added", flush=True), time.sleep(0.05))
pack.main(sys.argv[2:])
"""


def test_it_goes_on_where_it_was_killed(root, tmp_path, run, monkeypatch):  # noqa: F811
    target = tmp_path / "a.tar"
    command = [sys.executable, "-c", SLOWLY, str(ROOT), str(root), str(target)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        for _ in range(9):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not target.exists()
    partial = tmp_path / ".a.tar.partial"
    content = bytearray(partial.read_bytes())
    content[3 * 1024 + 600] ^= 1  # what a crash may leave is found by its hash
    partial.write_bytes(content)
    begun = []
    whole = tar_writer._append

    def append(tar, log, files, done, bar):
        begun.append(len(done))
        return whole(tar, log, files, done, bar)

    monkeypatch.setattr(tar_writer, "_append", append)
    assert run(root, target)[0] == 0
    assert 0 < begun[0] < 4
    assert run(root, tmp_path / "b.tar")[0] == 0
    assert target.read_bytes() == (tmp_path / "b.tar").read_bytes()
    assert not list(tmp_path.glob(".a.tar.partial*"))


def test_a_tar_is_checked_by_its_sums(root, tmp_path, run):  # noqa: F811
    target = tmp_path / "a.tar"
    run(root, target)
    status, out, _ = run(target, "--check")
    assert status == 0 and "all 31 files are as written" in out
    place = open_dataset(target, "val").images[4]
    content = bytearray(target.read_bytes())
    content[place.offset + 5] ^= 1
    target.write_bytes(content)
    status, _, err = run(target, "--check")
    assert status == 2 and "a.tar/val/pear/1.jpg is not what was written; pack it anew" in err
    status, _, err = run(tar(tmp_path / "b.tar", root), "--check")
    assert status == 2 and "b.tar has no SHA256SUMS" in err
    assert run(root)[0] == 2 and run(root, tmp_path / "folder")[0] == 2


def test_a_tar_never_counts_as_made_of_what_another_one_is(tmp_path, monkeypatch):
    """Not even where the process ends while one takes the place of the other."""
    target, replace = tmp_path / "a.tar", os.replace

    def write(about, content):
        files = [("a/1.jpg", content)]
        tar_writer.write_tar(target, about, 1, lambda done: files[len(done) :], "", replace=True)

    def ended(source, destination):
        if destination == target:
            raise KeyboardInterrupt
        replace(source, destination)

    write({"of": 1}, b"one")
    monkeypatch.setattr(os, "replace", ended)
    with pytest.raises(KeyboardInterrupt):
        write({"of": 2}, b"two")
    monkeypatch.undo()
    assert not any(tar_writer.is_made_of(target, {"of": number}) for number in (1, 2))
    write({"of": 2}, b"two")
    assert tar_writer.is_made_of(target, {"of": 2}) and tar_writer.check(target) == 1
    assert b"two" in target.read_bytes() and b"one" not in target.read_bytes()


def test_images_of_one_name_in_several_shards_are_all_packed(tmp_path, run):
    """Each shard numbers its samples from 0, as some writers do."""
    for shard in range(2):
        folder = tmp_path / f"s{shard}"
        folder.mkdir()
        for i in range(2):
            pixels = np.full((8, 8, 3), 60 * shard + 20 * i, np.uint8)
            cv2.imwrite(str(folder / f"{i:03d}.png"), pixels)
            (folder / f"{i:03d}.cls").write_text("猫" if i else "犬", encoding="utf-8")
        tar(tmp_path / f"train-{shard}.tar", folder, "*")
    status, out, err = run(tmp_path / "train-{0..1}.tar", tmp_path / "a.tar")
    assert status == 0 and "a.tar: 4 images" in out, err
    packed = open_dataset(tmp_path / "a.tar", "train")
    assert packed.classes == ["犬", "猫"] and len(packed) == 4
    colours = {int(decode(packed.images[i])[0, 0, 0]) for i in range(4)}
    assert colours == {0, 20, 60, 80}
