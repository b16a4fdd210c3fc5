"""Images that cannot be read in time, workers that outlive nobody, and the reason of a kill."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace

import models

import numpy as np
import psutil
import pytest

from data import cgroup, stalls
from data.loader import Loader
from data.readers import class_folders
from data.transforms import Preprocessing
from tests.data.test_loader import data_workers, gone
from tests.support import ROOT
from utils import UserError
from weights import checkpoint

SMALL = Preprocessing(size=32)


@pytest.fixture
def val(image_folder):
    """A set whose image 4 is a pipe that nobody writes to."""
    val = class_folders.read(image_folder(), "val")
    val.images[4].unlink()
    os.mkfifo(val.images[4])
    return val


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_image_that_stalls_is_an_error_that_names_it(val, workers):
    loader = Loader(val, SMALL, 3, workers, stall_timeout=0.5)
    batches, begun = loader.evaluation(), time.monotonic()
    next(batches)
    with pytest.raises(UserError, match=rf"{val.images[4]} takes more than 0\.5 s; look at"):
        next(batches)
    assert 0.4 < time.monotonic() - begun < 15
    assert gone(data_workers())
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_test_waits_as_long_as_it_is_told(val, command, tmp_path):
    file = tmp_path / "best.pkl"
    model = models.create("RepGhost050", 3)
    checkpoint.save(checkpoint.of_model(model, SMALL, ["apple", "pear", "plum"]), file)
    flags = [
        "--model",
        file,
        "--data",
        val.images[0].parents[2],
        "--stall-timeout",
        0.5,
        "--workers",
        0,
    ]
    status, _, err = command("test", *flags)
    assert status == 2 and "takes more than 0.5 s; look at" in err


def test_a_stall_is_noticed_behind_messages_that_the_worker_does_not_read(val):
    """Those about 4,000 images are larger than the buffer of a pipe."""
    images = [val.images[4], *([val.images[0]] * 3999)]
    many = replace(val, images=images * 4, labels=np.zeros(16000, np.int32))
    batches, begun = Loader(many, SMALL, 4000, 1, stall_timeout=0.5).evaluation(), time.monotonic()
    with pytest.raises(UserError, match=rf"{val.images[4]} takes more than 0\.5 s; look at"):
        next(batches)
    assert time.monotonic() - begun < 90  # the worker starts first, for which it has 60 s
    assert gone(data_workers())


def test_a_decoder_that_takes_every_error_for_a_bad_image_does_not_hold_up_a_signal(val):
    """Pillow's decoders raise errors of many kinds, and all of them are caught."""

    class Stop(Exception):
        pass

    def stop():
        raise Stop

    with pytest.raises(Stop), stalls.watched(val.images, 10.0, stop) as note:
        note(0)
        with contextlib.suppress(Exception):
            time.sleep(5)
        pytest.fail("the signal was lost")
    with pytest.raises(UserError, match="takes more than"):  # noqa: SIM117
        with stalls.watched(val.images, 0.2, lambda: None):
            with contextlib.suppress(Exception):
                time.sleep(5)


def test_a_batch_is_not_ended_twice_while_the_error_is_on_its_way(val, monkeypatch):
    """As on a busy machine, where several ticks pass before the timer is stopped."""
    set_timer = signal.setitimer

    def slowly(which, seconds, interval=0.0):
        if not seconds:
            time.sleep(0.3)
        return set_timer(which, seconds, interval)

    monkeypatch.setattr(signal, "setitimer", slowly)
    with pytest.raises(UserError, match="takes more than"):  # noqa: SIM117
        with stalls.watched(val.images, 0.1, lambda: None):
            time.sleep(5)


@pytest.mark.parametrize("workers", [0, 2])
def test_waiting_can_be_given_up(val, workers):
    loader = Loader(val, SMALL, 3, workers)
    given_up = threading.Event()

    def check():
        if given_up.is_set():
            raise KeyboardInterrupt

    loader.while_waiting = check
    batches = loader.evaluation()
    next(batches)
    threading.Timer(0.5, given_up.set).start()
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert gone(data_workers())


def test_slow_images_are_not_stalled(val, monkeypatch):
    """Only the time for a single image counts, and none while the process was suspended."""
    patience = stalls.Patience(1.0)
    assert not any(patience.ends(image, 0.4) for image in (1, 1, 2, 2, 3, 3))
    assert patience.ends(3, 0.4)
    forever = stalls.Patience(0)
    assert not any(forever.ends(1, 1e6) for _ in range(3))


PARENT = """
import sys, threading, time
from data.readers import class_folders
from data.loader import Loader
from data.transforms import Preprocessing
val = class_folders.read(sys.argv[1], "val")
import os
val.images[4].unlink()
os.mkfifo(val.images[4])
batches = Loader(val, Preprocessing(size=32), 3, 2).evaluation()
next(batches)
print("ready", flush=True)
next(batches)
"""


def test_a_worker_that_is_stuck_ends_with_its_parent(image_folder):
    command = [sys.executable, "-c", PARENT, str(image_folder())]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as parent:
        assert parent.stdout.readline() == b"ready\n"
        workers = data_workers(psutil.Process(parent.pid))
        assert len(workers) == 2
        time.sleep(0.3)  # one of them now waits for the pipe
        parent.kill()
    assert gone(workers)


def test_workers_ignore_signals_from_their_start(image_folder):
    """A batch system sends them to every process of a job, and the parent decides."""
    train = class_folders.read(image_folder(), "train")
    batches = Loader(train, SMALL, 4).training(0, 0)
    signals = signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1
    sent = set()

    def send():
        while len(sent) < 2:
            for worker in data_workers():
                for number in signals:
                    worker.send_signal(number)
                sent.add(worker.pid)

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    next(batches)
    sender.join()
    assert len(list(batches)) == 11


def test_a_working_directory_with_the_same_names_changes_nothing(
    image_folder, tmp_path, monkeypatch
):
    place = tmp_path / "place"
    (place / "data").mkdir(parents=True)
    for name in ("utils.py", "random.py", "data/__init__.py", "numpy.py", "signal.py"):
        (place / name).write_text("raise SystemExit('the wrong file was imported')\n")
    monkeypatch.chdir(place)
    train = class_folders.read(image_folder(), "train")
    assert len(list(Loader(train, SMALL, 4).training(0, 0))) == 12


# ---------------------------------------------------------------- control groups


def write(root, files):
    for name, text in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)


V2 = {
    "proc/self/cgroup": "0::/job/step\n",
    "sys/fs/cgroup/job/memory.max": "4000000\n",
    "sys/fs/cgroup/job/memory.current": "1500000\n",
    "sys/fs/cgroup/job/memory.stat": "anon 1000000\ninactive_file 500000\n",
    "sys/fs/cgroup/job/step/memory.max": "max\n",
    "sys/fs/cgroup/job/step/memory.current": "1200000\n",
    "sys/fs/cgroup/job/step/memory.events": "oom 1\noom_kill 3\n",
}
V1 = {
    "proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/abc\n0::/\n",  # the path on the host
    "sys/fs/cgroup/memory/memory.limit_in_bytes": "2000000\n",
    "sys/fs/cgroup/memory/memory.usage_in_bytes": "1500000\n",
    "sys/fs/cgroup/memory/memory.stat": "cache 5\ntotal_inactive_file 100000\n",
    "sys/fs/cgroup/memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
}


@pytest.mark.parametrize("files, free, kills", [(V2, 3e6, 3), (V1, 6e5, 2), ({}, float("inf"), 0)])
def test_the_limit_of_a_control_group_counts(tmp_path, files, free, kills):
    write(tmp_path, files)
    assert cgroup.available(tmp_path) == free
    assert cgroup.kills(tmp_path) == kills


def test_no_limit_is_none(tmp_path):
    write(tmp_path, {**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712"})
    assert cgroup.available(tmp_path) == float("inf")


def test_a_kill_is_explained(monkeypatch):
    monkeypatch.setattr(cgroup, "kills", lambda: 4)
    assert "the limit of the container or job was reached" in cgroup.reason(3)
    assert "was probably killed for lack of memory" in cgroup.reason(4)
