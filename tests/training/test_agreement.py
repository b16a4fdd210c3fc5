"""What workers on several hosts agree on: the checkpoint to resume from, equal weights, memory."""

import argparse
import mmap
import os

import megengine.module as M
import numpy as np
import pytest

from data.readers import class_folders
from training import agreement, low_memory, memory, messages
from training.distributed import shared_memory
from training.distributed.process_group import Workers
from utils import UserError


class Others(Workers):
    """Worker `rank` of two on two hosts; the other one gives `row` and, if it is 0, `content`."""

    size, hosts = 2, ("node-a", "node-b")

    def __init__(self, rank, row, content=None):
        self.rank, self.row, self.content = rank, row, content

    def gather(self, values):
        rows = [list(values), list(self.row)]
        return np.array(rows if self.rank == 0 else rows[::-1], np.float64)

    def broadcast_bytes(self, content):
        return content if self.rank == 0 else self.content


def test_worker_0s_checkpoint_is_every_ones(tmp_path):
    path = tmp_path / "latest.pkl"
    path.write_bytes(b"old")
    other = (1, 123, 456)
    for seen in path, None, tmp_path / "missing.pkl":
        got, line = agreement.on_checkpoint(seen, Others(1, other, b"new"))
        assert got.read_bytes() == b"new" and path.read_bytes() == b"old"
        assert "worker 1 on node-b got the checkpoint from worker 0" in line
    assert agreement.on_checkpoint(path, Others(0, other))[0] == path
    none = (0, 0, 0)
    assert agreement.on_checkpoint(None, Others(1, none)) == (None, None)
    got, line = agreement.on_checkpoint(path, Others(1, none))
    assert got is None and "worker 0 sees no checkpoint" in line and "new run" in line
    assert agreement.on_checkpoint(path, Workers()) == (path, None)


def test_other_weights_name_the_worker_and_the_reasons():
    with pytest.raises(UserError, match="^worker 1 on node-b no longer holds the same .*processor"):
        agreement.on_weights(M.Linear(2, 3), Others(0, (1, 2)))


@pytest.mark.parametrize("free, short", [(9 << 30, False), (3 << 30, True)])
def test_memory_is_charged_by_host(monkeypatch, free, short):
    monkeypatch.setattr(low_memory, "usual_need", lambda *_, **__: 2 << 30)
    monkeypatch.setattr(memory, "available_memory", lambda: 100 << 30)
    workers = Others(0, (2 * (2 << 30), free))  # two workers on the other host
    args = argparse.Namespace(
        batch_size=8, accumulate=1, size=32, freeze=False, sync_bn=False, drop_path=0.0
    )

    class Folder:
        lines = ()

        def log(self, line):
            self.lines = (*self.lines, line)

    folder = Folder()
    assert low_memory._memory_is_short(args, None, workers, folder) == short
    assert len(folder.lines) == short
    if short:
        assert "may take 4.0 GB, and 3.0 GB are free" in folder.lines[0]


@pytest.mark.parametrize(
    "what", ["classes", "training images", "number", "validation images", "nothing"]
)
def test_all_hosts_must_have_the_same_data(what, image_folder, tmp_path):
    sets = []
    for host in ("a", "b"):
        root = image_folder(tmp_path / host)
        if host == "b" and what == "classes":
            (root / "train" / "apple").rename(root / "train" / "aubergine")
            (root / "val" / "apple").rename(root / "val" / "aubergine")
        first = sorted((root / "train").rglob("*.jpg"))[0]
        if host == "b" and what == "training images":
            first.rename(first.with_name("other.jpg"))
        if host == "b" and what == "number":
            first.unlink()
        if host == "b" and what == "validation images":
            sorted((root / "val").rglob("*.jpg"))[0].unlink()
        sets.append([class_folders.read(root, split) for split in ("train", "val")])
    rows = []

    class Recorder(Workers):
        size = 2

        def gather(self, values):
            rows.append(values)
            return np.array([values, values], np.float64)

    agreement.on_data(*sets[1], Recorder())
    if what == "nothing":
        agreement.on_data(*sets[0], Others(0, rows[0]))
        return
    said = "training images" if what == "number" else what
    with pytest.raises(UserError, match=f"^worker 1 on node-b has other {said} than worker 0"):
        agreement.on_data(*sets[0], Others(0, rows[0]))
    agreement.on_data(*sets[0], Workers())


def test_bad_images_that_several_workers_have_met_count_once():
    answers = [[[2], [1]], [[3, 5], [5, -1]]]

    class Two(Workers):
        size = 2

        def gather(self, values):
            answer = np.array(answers.pop(0), np.float64)
            assert answer[0].tolist() == list(values)
            return answer

    assert messages._count({3, 5}, Two()) == 2
    assert messages._count({3, 5}, Workers()) == 2 and messages._count(set(), Workers()) == 0


def test_left_over_shared_memory_is_removed_and_that_in_use_is_not(tmp_path):
    names = {name: tmp_path / f"mpich_shm_{name}_0" for name in ("left", "used", "young")}
    for file in [*names.values(), tmp_path / "other"]:
        file.write_bytes(bytes(4096))
        os.utime(file, (0, 0))
    os.utime(names["young"])
    with open(names["used"], "r+b") as file, mmap.mmap(file.fileno(), 4096):
        assert shared_memory.remove_left_over(tmp_path) == 1
    assert {file.name for file in tmp_path.iterdir()} == {
        "mpich_shm_used_0", "mpich_shm_young_0", "other"
    }  # fmt: skip
