"""Batches: content, order, ranks, and workers that die."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace

import numpy as np
import psutil
import pytest

from data import datasets
from data.decoding import BadImageError
from data.loader import Loader
from data.readers import class_folders
from data.transforms import Preprocessing
from tests.support import ROOT
from training.signals import StopSignal
from utils import UserError

SMALL = Preprocessing(size=32)


@pytest.fixture
def train(image_folder):
    return class_folders.read(image_folder(), "train")  # 48 images


def data_workers(process=None):
    """The processes that a process has started to load data."""
    children = (process or psutil.Process()).children(recursive=True)
    return [child for child in children if "data.workers" in child.cmdline()]


def gone(processes, seconds=5):
    return not psutil.wait_procs(processes, timeout=seconds)[1]


def assert_same(batches, others):
    for (images, labels), (more_images, more_labels) in zip(batches, others, strict=True):
        np.testing.assert_array_equal(images, more_images)
        np.testing.assert_array_equal(labels, more_labels)


def test_bad_images_are_skipped_with_a_count_on_request(image_folder):
    root = image_folder()
    (root / "val" / "pear" / "2.jpg").write_bytes(b"\xff\xd8 nothing")
    val = class_folders.read(root, "val")
    for workers in (0, 2):
        with pytest.raises(BadImageError, match=r"pear/2\.jpg"):
            list(Loader(val, SMALL, 4, workers).evaluation())
        loader = Loader(val, SMALL, 4, workers, skip_bad=True)
        labels = np.concatenate([labels for _, labels in loader.evaluation()])
        assert labels.tolist() == [0] * 5 + [1] * 4 + [2] * 5
        assert loader.skipped == {7}


def test_evaluation_counts_each_image_once_and_in_order(image_folder):
    val = class_folders.read(image_folder(), "val")
    for batch, workers in ((4, 0), (15, 3), (100, 2), (1, 4)):
        found = 0
        for images, labels in Loader(val, SMALL, batch, workers).evaluation():
            assert images.dtype == np.float32 and images.flags.c_contiguous
            for image, label in zip(images, labels, strict=True):
                np.testing.assert_array_equal(image, SMALL.evaluation(val.image(found)))
                assert label == val.labels[found]
                found += 1
        assert found == 15


def test_the_number_of_workers_changes_nothing(train):
    whole = list(Loader(train, SMALL, 5, 0).training(seed=3, epoch=1))
    assert len(whole) == 48 // 5
    for workers in (1, 3, 9):
        assert_same(whole, Loader(train, SMALL, 5, workers).training(seed=3, epoch=1))


def test_an_epoch_entered_in_the_middle_goes_on_as_it_would_have(train):
    loader = Loader(train, SMALL, 5)
    whole = list(loader.training(seed=3, epoch=1))
    assert_same(whole[4:], loader.training(seed=3, epoch=1, skip=4))
    assert not list(loader.training(seed=3, epoch=1, skip=9))
    other = next(iter(loader.training(seed=3, epoch=2)))
    assert not np.array_equal(other[0], whole[0][0])


def test_a_batch_that_is_kept_keeps_its_content(train):
    """Its memory is used for other batches, but only when nobody holds it."""
    loader = Loader(train, SMALL, 4, 0)
    once = list(loader.training(0, 0))
    copies = [(images.copy(), labels.copy()) for images, labels in once]
    for images, _ in loader.training(0, 1):
        view = images[1:, :, 3]  # held while the next batch is made
    assert_same(once, copies)
    assert view.shape == (3, 3, 32)
    addresses = {images.ctypes.data for images, _ in Loader(train, SMALL, 4, 0).training(0, 0)}
    assert len(addresses) < 4


@pytest.mark.parametrize("world", [2, 3, 4, 5])
def test_ranks_share_each_batch_and_the_whole_evaluation(train, world):
    whole = list(Loader(train, SMALL, 12, 0).training(5, 1))
    ranks = [Loader(train, SMALL, 12, 0, rank=rank, world=world) for rank in range(world)]
    for skip in (0, 3):
        parts = zip(*(rank.training(5, 1, skip) for rank in ranks), strict=True)
        joined = (map(np.concatenate, zip(*part, strict=True)) for part in parts)
        assert_same(whole[skip:], joined)
    images = [[] for _ in range(world)]
    for rank, loader in enumerate(ranks):
        loader.batch_size = 5
        for batch, _ in loader.evaluation():
            images[rank] += list(batch)
    assert sum(map(len, images)) == 48
    for index in range(48):
        expected = SMALL.evaluation(train.image(index))
        np.testing.assert_array_equal(images[index % world][index // world], expected)


def test_a_rank_may_have_no_image_to_evaluate(train):
    assert len(list(Loader(train, SMALL, 100, rank=47, world=48).evaluation())) == 1
    assert not list(Loader(train, SMALL, 100, rank=48, world=49).evaluation())


def test_data_in_memory_needs_no_processes():
    train, _ = datasets.digits()
    batches = Loader(train, SMALL, 16, workers=2).training(0, 0)
    assert next(batches)[0].shape == (16, 3, 32, 32)
    assert not data_workers()


def test_workers_are_light_and_leave_with_the_loop(train):
    batches = Loader(train, SMALL, 4).training(0, 0)
    next(batches)
    workers = data_workers()
    assert len(workers) == 2
    for worker in workers:
        mapped = {region.path for region in worker.memory_maps()}
        assert not any("site-packages/megengine" in path for path in mapped)
        assert any("site-packages/cv2" in path for path in mapped)
    batches.close()
    assert gone(workers)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_worker_that_is_killed_is_an_error_that_names_the_image(train, number):
    batches = Loader(train, SMALL, 2).training(0, 0)
    next(batches)
    workers = data_workers()
    os.kill(workers[1].pid, number)
    begun = time.monotonic()
    with (
        StopSignal() as stop,
        pytest.raises(UserError, match=rf"2 of 2 was ended by {number.name} at the image .*jpg;"),
    ):
        list(batches)
    assert stop.number is None  # writing to it gave a SIGPIPE
    assert time.monotonic() - begun < 5
    assert gone(workers)


def test_a_worker_with_too_many_open_files_is_a_sentence(train):
    batches = Loader(train, SMALL, 1).training(0, 0)
    next(batches)
    workers = data_workers()
    for worker in workers:
        worker.rlimit(psutil.RLIMIT_NOFILE, (0, 0))
    with pytest.raises(UserError, match="allow more open files by ulimit -n"):
        list(batches)
    assert gone(workers)


def test_the_image_that_a_worker_died_at_is_the_one_named(train):
    """A pipe that nobody writes to holds the worker at that file."""
    stuck = train.images[20]
    stuck.unlink()
    os.mkfifo(stuck)

    def kill():
        writer = None
        while writer is None:
            with suppress(OSError):  # nobody has opened it for reading yet
                writer = os.open(stuck, os.O_WRONLY | os.O_NONBLOCK)
            time.sleep(0.01)
        data_workers()[0].kill()
        os.close(writer)

    threading.Thread(target=kill, daemon=True).start()
    with pytest.raises(UserError, match=f"data worker 1 of 2 .* at the image {stuck};"):
        list(Loader(train, SMALL, 7, 2).evaluation())


def test_signals_to_the_group_leave_the_workers_to_the_parent(train):
    batches = Loader(train, SMALL, 4).training(0, 0)
    next(batches)
    for worker in data_workers():
        worker.send_signal(signal.SIGTERM)
        worker.send_signal(signal.SIGINT)
    assert len(list(batches)) == 11


PARENT = """
import sys, time
import numpy as np
from data.readers import class_folders
from data.loader import Loader
from data.transforms import Preprocessing
train = class_folders.read(sys.argv[1], "train")
batches = Loader(train, Preprocessing(size=32), 4).training(0, 0)
next(batches)
print("ready", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_its_parent(image_folder, number):
    command = [sys.executable, "-c", PARENT, str(image_folder())]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as parent:
        assert parent.stdout.readline() == b"ready\n"
        workers = data_workers(psutil.Process(parent.pid))
        assert len(workers) == 2
        parent.send_signal(number)
        parent.wait(10)
    assert gone(workers)


def test_repeated_augmentation(train):
    """Each image three times, augmented differently, on as many ranks, in as many batches."""
    repeated = replace(train, augment=replace(train.augment, repeats=3))
    plain = list(Loader(train, SMALL, 12, 0).training(0, 0))
    batches = list(Loader(repeated, SMALL, 12, 2).training(0, 0))
    assert len(batches) == len(plain) == 4
    for images, labels in batches:
        assert labels.reshape(3, 4).tolist() == [labels[:4].tolist()] * 3
        assert len({image.tobytes() for image in images}) == 12
    # the first of each is what it is without repetition
    order = np.concatenate([images[:4] for images, _ in batches])
    np.testing.assert_array_equal(order, np.concatenate([images for images, _ in plain])[:16])
    ranks = [Loader(repeated, SMALL, 12, 0, rank=rank, world=3) for rank in range(3)]
    parts = zip(*(rank.training(0, 0) for rank in ranks), strict=True)
    assert_same(batches, (map(np.concatenate, zip(*part, strict=True)) for part in parts))
    uneven = list(Loader(repeated, SMALL, 10, 0).training(0, 0))
    assert len(uneven) == 4
    everything = [image.tobytes() for images, _ in uneven for image in images]
    assert len(set(everything)) == 40


def test_heavy_augmentation_is_the_same_in_every_process(train):
    settings = {"auto_augment": "rand-m9-mstd0.5-inc1", "random_erasing": 0.5, "repeats": 2}
    heavy = replace(train, augment=replace(train.augment, **settings))
    one, two = (Loader(heavy, SMALL, 12, workers).training(1, 2) for workers in (0, 2))
    assert_same(one, two)
