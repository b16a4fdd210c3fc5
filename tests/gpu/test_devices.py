"""Counting GPUs and telling them apart, with tests/gpu/fake_cuda.c for the driver's library."""

import os
import re
import shutil
import subprocess
import sys

from models import gpus

import pytest
from megengine.core._imperative_rt import common

from tests.support import ROOT

COMPILER = shutil.which("cc") or shutil.which("gcc")
pytestmark = pytest.mark.skipif(COMPILER is None, reason="needs a C compiler, cc or gcc")


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    folder = tmp_path_factory.mktemp("driver")
    source = ROOT / "tests" / "gpu" / "fake_cuda.c"
    command = [COMPILER, "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def run(library, tmp_path):
    """A function that runs Python with the fake driver: (status, stdout, stderr lines, cuInits)."""

    def run(*arguments, **variables):
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MGE_", "MGB_"))}
        log = tmp_path / "log"
        environment |= {"LD_LIBRARY_PATH": str(library), "FAKE_CUDA_LOG": str(log), **variables}
        command = [sys.executable, "-W", "ignore", *map(str, arguments)]
        process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        calls = [line.split() for line in log.read_text().splitlines()] if log.exists() else []
        return process.returncode, process.stdout, process.stderr.splitlines(), calls

    return run


ASK = "import os; from models import environment, gpus; print(os.getpid(), environment.gpu_count()"


def test_a_child_process_asks_the_driver(run):
    status, out, _, calls = run("-c", f"{ASK}, *gpus.visible()[0])", FAKE_CUDA_CAPABILITY="7.5")
    process, count, *gpu = out.strip().split(maxsplit=2)
    assert (status, count, gpu) == (0, "2", ["Fake GPU 7.5"])
    assert [result for _, result in calls] == ["0"]
    assert process not in {caller for caller, _ in calls}
    hidden = {"FAKE_CUDA_CAPABILITY": "7.5", "CUDA_VISIBLE_DEVICES": ""}
    _, out, *_ = run("-c", f"{ASK}, len(gpus.visible()))", **hidden)
    assert out.split()[1:] == ["0", "0"]


def test_the_supported_gpus_are_those_of_the_wheel():
    kernels = re.findall(r"code=sm_(\d)(\d)", common.get_supported_sm_versions())
    assert tuple(map(".".join, kernels)) == gpus.SUPPORTED


def test_without_a_driver_there_is_none(monkeypatch):
    monkeypatch.setattr("ctypes.CDLL", lambda name: (_ for _ in ()).throw(OSError(name)))
    assert gpus.visible.__wrapped__() == ()


def test_several_workers_on_an_unsupported_gpu_are_refused(run):
    status, out, err, _ = run("train.py", "--ngpus", "2")
    assert (status, out, len(err)) == (2, "", 1)
    assert err[0].startswith(
        "train.py: error: MegEngine's wheel does not run on this machine's GPU, "
    )
    assert "Fake GPU (compute capability 9.0)" in err[0] and "5.2, 6.0, 6.1, 7.0 and 7.5" in err[0]
    assert err[0].endswith("set MGE_DEFAULT_DEVICE=cpu0 to train on the CPU")


@pytest.mark.parametrize(
    "command",
    [
        ["train.py", "--show-samples", "FILE"],
        pytest.param(["verify.py", "--arch", "RepGhost050"], marks=pytest.mark.slow),
    ],
)
def test_else_the_cpu_is_used_and_that_is_said_once(run, tmp_path, command):
    command = [str(tmp_path / "samples.png") if word == "FILE" else word for word in command]
    status, out, err, _ = run(*command)
    assert status == 0 and "does not run" not in out
    notes = [line for line in err if line.startswith("note: MegEngine's wheel does not run on")]
    assert len(notes) == 1 and notes[0].endswith("; computing on the CPU"), err


@pytest.mark.parametrize("variables", [{}, {"MGE_DEFAULT_DEVICE": "cpu0"}], ids=str)
def test_any_device_is_then_the_cpu_in_a_command(run, variables):
    """An .mge file is written for any device; others in a process may use GPUs all the same."""
    code = """
import os
from models import environment
before = os.environ.get("CUDA_VISIBLE_DEVICES")
environment.hide_unused_gpus()
import megengine
megengine.set_default_device("xpux")
print(before, megengine.Tensor([2]).numpy())
"""
    status, out, err, _ = run("-c", code, **variables)
    assert (status, out.strip()) == (0, "None [2]"), err


@pytest.mark.slow
def test_the_workers_may_use_cuda(run, tmp_path):
    save = ["--save", tmp_path, "--workers", "0"]
    status, _, err, calls = run("train.py", "--ngpus", "2", *save, FAKE_CUDA_CAPABILITY="7.5")
    assert status not in (0, None)  # in MegEngine's CUDA runtime, for which there is no GPU
    assert "cuda error" in err[-1] and "worker" in err[-1], err
    assert len(calls) >= 3 and {result for _, result in calls} == {"0"}  # none in a forked process
