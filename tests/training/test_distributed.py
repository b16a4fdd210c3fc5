"""Real workers under a real mpiexec: equal results, and one sentence when one of them fails."""

import copy
import os
import pickle
import re
import shlex
import signal
import subprocess
import sys
import time

import models

import numpy as np
import psutil
import pytest

from tests.support import ROOT, write_image_folder
from tests.training.test_run import SMALL, equal, finish, start, wait_for
from training.distributed.process_group import Workers, synchronize_batch_norms

# two workers, with all that has state or is drawn at random
ALL = [*SMALL[:-1], "--ngpus", "2", "--optimizer", "adamw", "--lr", "0.01", "--ema", "0.9",
       "--mixup", "0.2", "--accumulate", "2", "--epochs", "2"]  # fmt: skip
SHORT = [*SMALL, "--epochs", "1", "--warmup-epochs", "0"]


def run_workers(count, plan, folder):
    folder.mkdir()
    script = ROOT / "tests" / "training" / "worker.py"
    started = time.monotonic()
    process = subprocess.run(
        [sys.executable, script, str(count), plan, folder],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    return process, time.monotonic() - started


@pytest.mark.slow
def test_any_number_of_workers_gives_the_same_network(tmp_path):
    results = []
    for count in (1, 2, 3, 4):
        process, _ = run_workers(count, "train", tmp_path / str(count))
        assert process.returncode == 0, process.stderr
        results.append(dict(np.load(tmp_path / str(count) / "result.npz")))
    alone, *others = results
    for result in others:
        assert result.keys() == alone.keys()
        np.testing.assert_allclose(result["train_loss"], alone["train_loss"], rtol=1e-4)
        np.testing.assert_array_equal(result["val_top1"], alone["val_top1"])  # of 47 images
        for name in [name for name in alone if name.endswith(("weight", "bias"))]:
            np.testing.assert_allclose(result[name], alone[name], atol=1e-5, err_msg=name)
    assert len(set(alone["train_loss"])) == 8


@pytest.mark.slow
def test_workers_clip_average_and_estimate_statistics_together(tmp_path):
    results = []
    for count in (1, 2):
        process, _ = run_workers(count, "watched", tmp_path / str(count))
        assert process.returncode == 0, process.stderr
        results.append(dict(np.load(tmp_path / str(count) / "result.npz")))
    alone, both = results
    for name, value in alone.items():
        np.testing.assert_allclose(both[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    "plan, reason",
    [
        ("raise", "worker 1: ValueError: invalid literal for int() with base 10: 'seven'"),
        pytest.param("exit", "worker 1: SystemExit: ", marks=pytest.mark.slow),
        pytest.param("_exit", "worker 1 ended before its work was done", marks=pytest.mark.slow),
    ],
)
def test_a_worker_that_fails_ends_all(tmp_path, plan, reason):
    process, seconds = run_workers(2, plan, tmp_path / plan)
    assert process.returncode not in (0, None) and seconds < 60
    assert reason in process.stderr.splitlines()[-1]
    latest = pickle.loads((tmp_path / plan / "latest.pkl").read_bytes())
    assert latest["training"]["step"] in (1, 2)  # the first may still have been writing


def worker(parent, rank):
    for child in psutil.Process(parent.pid).children(recursive=True):
        if "train.py" in child.cmdline() and child.environ().get("PMI_RANK") == str(rank):
            return child
    raise AssertionError(f"there is no worker {rank}")


@pytest.fixture(scope="module")
def straight(tmp_path_factory):
    """A run of two workers that was never interrupted: its data and its folder."""
    root = tmp_path_factory.mktemp("straight")
    data = write_image_folder(root / "data")
    flags = ["--data", data, "--save", root, "--tag", "a", *ALL]
    status, out = finish("train.py", *flags)
    assert status == 0 and "2 workers" in out, out
    return data, root / "RepVGGA0" / "a"


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_worker_ends_the_run_which_resumes_to_the_same_bits(straight, tmp_path, victim):
    data, folder = straight
    command = ["train.py", "--data", data, "--save", tmp_path, "--tag", "b", "--save-freq", "2"]
    process = start(*command, *ALL)
    wait_for(process, "epoch 2 step 3/6")
    worker(process, victim).send_signal(signal.SIGKILL)
    killed = time.monotonic()
    out, _ = process.communicate()
    assert time.monotonic() - killed < 10
    assert process.returncode not in (0, None)
    assert f"worker {victim} ended before its work was done (killed)" in out.splitlines()[-1]
    status, out = finish(*command, *ALL, "--resume", "auto")
    assert status == 0 and "resuming" in out, out
    resumed = tmp_path / "RepVGGA0" / "b"
    for name in ("latest.pkl", "best.pkl"):
        a, b = (pickle.loads((run / name).read_bytes()) for run in (folder, resumed))
        assert equal(a, b), name
    assert (folder / "metrics.csv").read_bytes() == (resumed / "metrics.csv").read_bytes()


@pytest.mark.slow
def test_a_signal_saves_and_another_number_of_workers_goes_on(straight, tmp_path):
    data, _ = straight
    command = ["train.py", "--data", data, "--save", tmp_path, "--tag", "b", "--save-freq", "0"]
    process = start(*command, *SHORT, "--ngpus", "2")
    wait_for(process, "epoch 1 step 2/6")
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM after step" in out.splitlines()[-1], out
    status, out = finish(*command, *SHORT, "--ngpus", "3", "--resume", "auto")
    assert status == 0 and re.search(r"resuming .* after step [2-5] of 6", out), out


@pytest.mark.slow
def test_workers_whose_output_is_lost_save_too(straight, tmp_path):
    data, _ = straight
    flags = ["--data", data, "--save", tmp_path, "--tag", "b", "--save-freq", "0", *SHORT]
    command = shlex.join([sys.executable, "train.py", *map(str, flags), "--ngpus", "2"])
    command = f"set -o pipefail; {command} --print-freq 1 | grep -m 1 'step 1/'"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, timeout=120)
    assert done.returncode == 128 + signal.SIGPIPE
    log = (tmp_path / "RepVGGA0/b/log.txt").read_text()
    assert "stopped by SIGPIPE (the output can no longer be written)" in log.splitlines()[-1]


def test_a_copy_of_a_network_shares_its_workers(tiny):
    """Validation fuses a copy, and what joins the processes cannot be copied."""

    class Two(Workers):
        size = 2

        def __deepcopy__(self, memo):
            raise TypeError("a process cannot be copied")

    model = tiny()
    synchronize_batch_norms(model, Two())
    models.to_deploy(model)
    norm = next(m for m in copy.deepcopy(model).modules() if hasattr(m, "all_reduce"))
    assert norm.all_reduce is not None


@pytest.mark.slow
def test_a_bad_image_names_the_file_and_the_worker(tmp_path):
    data = write_image_folder(tmp_path / "data")
    bad = data / "train" / "pear" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    flags = ["--data", data, "--save", tmp_path, "--tag", "b", "--ngpus", "2", *SHORT]
    status, out = finish("train.py", *flags)
    assert status == 2
    assert re.search(rf"train.py: error: worker \d: the image {bad} is corrupt", out), out
    status, out = finish("train.py", *flags, "--skip-bad-images")
    assert status == 0, out
