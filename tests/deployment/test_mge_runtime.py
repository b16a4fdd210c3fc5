"""Files that MegEngine's runtime cannot read, or that crash or stall the process that runs them.

What native code does on another processor is planted: `planted_child` is the real child process,
whose network ends it or stands still in native code.
"""

import os
import re
import time
from pathlib import Path

import numpy as np
import pytest

from deployment import mge_runtime
from deployment.mge_export import export_mge
from deployment.mge_runtime import MgeFile
from utils import UserError


@pytest.fixture
def file(network, preprocessing, tmp_path):
    path = tmp_path / "a.mge"
    metadata = {"arch": "RepVGGA0", "classes": None, "num_classes": 10}
    export_mge(network("RepVGG"), path, preprocessing, size=32, metadata=metadata)
    return path


@pytest.fixture
def plant(monkeypatch):
    """A function that makes the children of this test fail in some way."""

    def plant(kind):
        monkeypatch.setattr(mge_runtime, "CHILD", "tests.deployment.planted_child")
        monkeypatch.setenv("PLANTED", kind)

    return plant


def children():
    """Process numbers of this process's children."""
    return [
        int(stat.parent.name)
        for stat in Path("/proc").glob("[0-9]*/stat")
        if stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid())
    ]


IMAGES = np.zeros((1, 3, 32, 32), np.float32)


@pytest.mark.parametrize(
    "kind, said",
    [
        ("exit in a thread", r"ended with exit status 7: oneDNN says why"),
        ("abort", r"crashed \(SIGABRT\)"),
        ("stall", r"gave no answer within 3 s"),
        ("stall with the lock", r"gave no answer within 3 s"),
    ],
)
def test_a_failure_is_a_sentence(kind, said, file, plant, monkeypatch):
    before = children()
    plant(kind)
    if "stall" in kind:
        monkeypatch.setattr(mge_runtime, "TIME_LIMIT", 3)
    runner = MgeFile(file)
    start = time.monotonic()
    with pytest.raises(
        UserError, match=f"{said} on {re.escape(str(file))}, whose layout is nchw; "
    ):
        runner(IMAGES)
    assert time.monotonic() - start < 30
    with pytest.raises(UserError, match=said):  # asked again, it says it again
        runner(IMAGES)
    del runner
    assert children() == before


def test_export_leaves_nothing_behind(network, preprocessing, tmp_path, plant):
    plant("exit in a thread")
    path = tmp_path / "a.mge"
    with pytest.raises(UserError, match=f"exit status 7.* on {re.escape(str(path))}, "):
        export_mge(network("RepVGG"), path, preprocessing, size=32)
    assert list(tmp_path.iterdir()) == []


def test_predict_says_it(command, file, plant, tmp_path, image_folder):
    image = image_folder(train=0, val=1) / "val" / "apple" / "0.jpg"
    plant("exit in a thread")
    status, _, err = command("predict", image, "--model", file)
    assert status == 2 and len(err.splitlines()) == 1
    assert "ended with exit status 7" in err and f"on {file}, whose layout is nchw; " in err


def test_a_process_lasts_as_long_as_its_file(file):
    before = children()
    runner = MgeFile(file)
    assert len(children()) == len(before) + 1
    assert np.array_equal(runner(IMAGES), runner(IMAGES))
    del runner
    assert children() == before


def test_what_is_no_such_file(tmp_path):
    path = tmp_path / "a.mge"
    with pytest.raises(UserError, match="cannot read .*No such file"):
        MgeFile(path)
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match="none of MegEngine's, or damaged"):
        MgeFile(path)


def test_an_error_of_the_runtime(file):
    with pytest.raises(UserError, match=f"failed .* on {re.escape(str(file))}, whose layout is"):
        MgeFile(file)(np.zeros((1, 4, 32, 32), np.float32))


def test_many_images_run_in_parts(file):
    """The time limit is then for a few images."""
    network = MgeFile(file)
    images = np.random.default_rng(0).random((19, 3, 32, 32), np.float32)
    expected = np.concatenate([network(images[i : i + 1]) for i in range(19)])
    assert network(images).shape == (19, 10)
    np.testing.assert_allclose(network(images), expected, rtol=1e-4, atol=1e-5)
