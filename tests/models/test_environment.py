"""What `import models` sets for MegEngine, and what of the process it leaves alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

from models import environment, gpus

import pytest

from tests.support import ROOT

CODE = """\
import ctypes, json, os, resource

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.prctl(29, ctypes.c_ulong(70_000), 0, 0, 0)  # a timer slack like nobody else's


def process():
    block = libc.malloc(64 << 20)  # above the largest threshold that glibc itself sets
    size_and_flags = ctypes.c_size_t.from_address(block - ctypes.sizeof(ctypes.c_size_t)).value
    libc.free(block)
    limits = [name for name in dir(resource) if name.startswith("RLIMIT_")]
    return {
        "block is mapped": bool(size_and_flags & 2),  # IS_MMAPPED of glibc's malloc.c
        "timer slack": int(open("/proc/self/timerslack_ns").read()),
        "limits": {name: resource.getrlimit(getattr(resource, name)) for name in limits},
    }


variables, before = dict(os.environ), process()
import models; models.create("RepVGGA0")
after = process()
models.environment.tune_for_computing()
changed = {key: value for key, value in os.environ.items() if variables.get(key) != value}
print("report", json.dumps([changed, before, after, process()]))
"""

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/timerslack_ns").exists(), reason="needs Linux and glibc"
)


def import_models(folder, **variables):
    """Variables that `import models` sets; the process before it, after it, and tuned."""
    names = ("MGE_", "MGB_", "MKL_", "MPL", "RUNTIME_OVERRIDE_")
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(names)}
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=folder,
        env={**inherited, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    changed, *processes = json.loads(run.stdout.split("report ")[1])
    changed.pop("LD_LIBRARY_PATH", None)  # by OpenCV, which MegEngine imports
    return changed, *processes


def test_importing_models_sets_variables_and_leaves_the_process_alone(tmp_path):
    changed, before, after, tuned = import_models(tmp_path)
    expected = {"MGE_FASTRUN_CACHE_TYPE": "MEMORY"}
    if "AuthenticAMD" in Path("/proc/cpuinfo").read_text():
        expected["MKL_DEBUG_CPU_TYPE"] = "5"
    if environment.gpu_count() == 0:
        expected["MGE_DEFAULT_DEVICE"] = "cpu0"
        expected["MGB_WORKER_MAX_SPIN"] = "1"
        expected["RUNTIME_OVERRIDE_LOG_LEVEL"] = "3"
        assert tuned == {**before, "block is mapped": False, "timer slack": 5_000_000}
    assert changed == expected
    assert after == before
    assert after["block is mapped"] and after["timer slack"] == 70_000


def test_variables_of_the_user_are_kept(tmp_path):
    own = {
        "MGE_DEFAULT_DEVICE": "multithread2:0",
        "MGE_FASTRUN_CACHE_TYPE": "FILE",
        "MKL_DEBUG_CPU_TYPE": "4",
        "MGB_WORKER_MAX_SPIN": "7",
        "RUNTIME_OVERRIDE_LOG_LEVEL": "2",
    }
    changed, *_ = import_models(tmp_path, **own)
    assert changed == {}


@pytest.mark.parametrize(
    "variable, value, said",
    [
        ("REPARAM_CPU", "quick", "REPARAM_CPU is 'quick'; give stock, matmul, fast"),
        ("MGE_DEFAULT_DEVICE", "gpu0", "MGE_DEFAULT_DEVICE is 'gpu0', but CUDA's driver shows no"),
    ],
)
@pytest.mark.parametrize("arguments", ["verify.py", "export.py --arch RepVGGA0", "train.py"])
def test_a_variable_that_cannot_be_used_is_a_sentence(variable, value, said, arguments, tmp_path):
    if value == "gpu0" and gpus.visible():
        pytest.skip("this machine has a GPU")
    command, *flags = arguments.split()
    done = subprocess.run(
        [sys.executable, ROOT / command, *flags],
        env={**os.environ, variable: value},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and said in done.stderr and len(done.stderr.splitlines()) == 1
