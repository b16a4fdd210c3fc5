"""A run owns its folder: locks, exclusive names, what killed processes left, and best.pkl."""

import argparse
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT
from training import run_location
from training.run_folder import RunFolder
from utils import UserError, write_atomically

HOLDER = """
import sys, time
from pathlib import Path
from training.run_folder import RunFolder
RunFolder(Path(sys.argv[1])).log("mine")
print("held", flush=True)
time.sleep(60)
"""


def arguments(root, **changed):
    flags = {"save": root, "arch": "RepVGGA0", "tag": None, "resume": None}
    flags |= {"pretrained": None, "stride": None}
    return argparse.Namespace(**{**flags, **changed})


def open_folder(args):
    return run_location.open_folder(args, run_location.find(args), silent=False)


@pytest.fixture
def holder(tmp_path):
    """A folder that another process holds, and that process."""
    folder = tmp_path / "RepVGGA0" / "a"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "mine\n"
        assert process.stdout.readline() == "held\n"
        yield folder, process
        process.kill()


def test_a_folder_in_use_is_refused_until_its_process_is_killed(holder, tmp_path):
    folder, process = holder
    for resume in (None, "auto"):
        with pytest.raises(UserError, match=f"another run is writing to {folder}; wait until"):
            open_folder(arguments(tmp_path, tag="a", resume=resume))
    process.kill()
    process.wait()
    assert open_folder(arguments(tmp_path, tag="a")).path == folder
    assert (folder / "log.txt").read_text() == "mine\n"


def test_folders_named_by_the_second_are_not_shared(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda _: "now")
    paths = [open_folder(arguments(tmp_path)).path.name for _ in range(3)]
    assert paths == ["now", "now_2", "now_3"]
    # other workers of a run write nothing, and make no folder
    run_location.open_folder(arguments(tmp_path / "b"), None, silent=True)
    assert not (tmp_path / "b").exists()


def test_no_run_is_overwritten(tmp_path):
    for tag in ("a", "b"):
        folder = open_folder(arguments(tmp_path, tag=tag))
        folder.write("latest.pkl", b"")
    with pytest.raises(UserError, match="a already holds a run; go on with it by --resume auto"):
        open_folder(arguments(tmp_path, tag="a"))
    latest = folder.path / "latest.pkl"
    with pytest.raises(UserError, match="a already holds a run"):
        open_folder(arguments(tmp_path, tag="a", resume=str(latest)))
    assert open_folder(arguments(tmp_path, tag="c", resume=str(latest))).path.name == "c"
    assert open_folder(arguments(tmp_path, resume=str(latest))).path == folder.path
    assert open_folder(arguments(tmp_path, tag="b", resume="auto")).path == folder.path


def test_a_run_whose_latest_checkpoint_is_gone_is_not_overwritten(tmp_path):
    folder = open_folder(arguments(tmp_path, tag="a"))
    folder.write("best.pkl", b"")  # a run that was killed in its first epoch may begin anew
    assert open_folder(arguments(tmp_path, tag="a", resume="auto")).path == folder.path
    folder.write("metrics.csv", b"")
    for resume in (None, "auto"):
        with pytest.raises(UserError, match=f"{folder.path} holds a run without its latest.pkl"):
            open_folder(arguments(tmp_path, tag="a", resume=resume))


def test_with_a_tag_runs_in_folders_below_are_others(tmp_path):
    outer = open_folder(arguments(tmp_path, tag="sweep"))
    inner = open_folder(arguments(tmp_path, tag="sweep/lr1"))
    inner.write("latest.pkl", b"")
    assert run_location.find(arguments(tmp_path, tag="sweep", resume="auto")) is None
    outer.write("latest.pkl", b"")
    os.utime(outer.latest, (0, 0))
    assert run_location.find(arguments(tmp_path, tag="sweep", resume="auto")) == outer.latest
    assert run_location.find(arguments(tmp_path, resume="auto")) == inner.latest


def test_a_link_to_nothing_is_no_folder_of_another_run(tmp_path):
    (tmp_path / "checkpoints").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match="cannot write to the output folder"):
        open_folder(arguments(tmp_path / "checkpoints"))


def test_the_total_stride_of_pretrained_weights_is_in_the_folders_name(tmp_path):
    args = arguments(tmp_path, tag="a", pretrained="a.pkl")
    folder = run_location.open_folder(args, run_location.find(args), silent=False, stride=8)
    assert folder.path == tmp_path / "RepVGGA0-stride8" / "a"
    assert run_location.open_folder(args, None, False, 32).path == tmp_path / "RepVGGA0" / "a"
    folder.write("latest.pkl", b"")
    # --resume auto does not read the weights before it looks for the run
    assert (
        run_location.find(arguments(tmp_path, pretrained="a.pkl", resume="auto")) == folder.latest
    )
    assert run_location.find(arguments(tmp_path, resume="auto")) is None
    assert run_location.find(arguments(tmp_path, stride=8, resume="auto")) == folder.latest


def test_unfinished_files_of_dead_processes_are_removed(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    host = socket.gethostname()
    dead = tmp_path / f".latest.pkl.{host}.{process.pid}.tmp"
    others = [
        tmp_path / name
        for name in (
            f".latest.pkl.{host}.{os.getpid()}.tmp",
            f".latest.pkl.{host}-2.{process.pid}.tmp",
            "notes.tmp",
            ".x.tmp",
        )
    ]
    for file in (dead, *others):
        file.touch()
    RunFolder(tmp_path)
    assert not dead.exists() and all(file.exists() for file in others)


def test_a_killed_write_leaves_a_file_that_is_recognized(tmp_path):
    program = (
        "import os, sys, utils\n"
        "utils.write_atomically(sys.argv[1], lambda file: os.kill(os.getpid(), 9))"
    )
    subprocess.run([sys.executable, "-c", program, tmp_path / "best.pkl"], cwd=ROOT)
    assert len(list(tmp_path.glob(".best.pkl.*.tmp"))) == 1
    RunFolder(tmp_path)
    assert not list(tmp_path.glob(".*"))
    write_atomically(tmp_path / "best.pkl", lambda file: file.write(b"whole"))
    assert (tmp_path / "best.pkl").read_bytes() == b"whole"


def test_what_is_no_regular_file_is_never_replaced(tmp_path):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "folder", tmp_path / "pipe", ".", "/", "/dev/null"):
        with pytest.raises(UserError, match="it is no regular file; give another name"):
            write_atomically(path, lambda file: file.write(b"text"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "pipe"]
    assert Path("/dev/null").is_char_device()


def test_a_run_that_fails_at_once_leaves_no_folder(tmp_path):
    folder = open_folder(arguments(tmp_path, tag="a"))
    folder.remove_if_unused()
    assert not folder.path.exists()
    folder = open_folder(arguments(tmp_path, tag="a"))
    folder.log("begun")
    folder.remove_if_unused()
    assert folder.path.exists()


def test_a_run_that_was_moved_is_found_through_its_link(tmp_path):
    run = open_folder(arguments(tmp_path, tag="a"))
    run.write("latest.pkl", b"")
    (tmp_path / "big").mkdir()
    run.path.rename(tmp_path / "big/a")
    run.path.symlink_to(tmp_path / "big/a")
    (tmp_path / "big/a/back").symlink_to(run.path.parent)  # without an end
    assert run_location.find(arguments(tmp_path, resume="auto")) == run.path / "latest.pkl"


def test_best_comes_along_into_a_new_folder(tmp_path):
    old = open_folder(arguments(tmp_path, tag="a"))
    old.write("latest.pkl", b"")
    old.write("best.pkl", b"best")
    latest = old.path / "latest.pkl"
    new = open_folder(arguments(tmp_path, tag="b", resume=str(latest)))
    run_location.bring_best(run_location.best_of(latest, new), new)
    assert new.best.read_bytes() == b"best"
