"""No test can keep a test run from ending: pytest runs planted ones."""

import subprocess
import sys
import time

import pytest

from tests.support import ROOT, slow_but

STALLS = {
    "native code that holds Python's lock": "ctypes.PyDLL(None).pause()",
    "native code": "ctypes.CDLL(None).pause()",
    "a loop": "while True: pass",
    "a lock": "lock = threading.Lock(); lock.acquire(); lock.acquire()",
}
FILE = """\
import ctypes, os, threading


def test_before():
    pass


def test_planted():
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    {planted}


def test_after():
    pass
"""


def run(tmp_path, planted, *options):
    """Run the three tests: (what pytest prints, seconds)."""
    (tmp_path / "test_stall.py").write_text(FILE.format(planted=planted))
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--config-file", ROOT / "pyproject.toml", "--rootdir",
         tmp_path, "-p", "no:cacheprovider", "-o", "faulthandler_timeout=2", *options, tmp_path],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 1
    return done.stdout, time.monotonic() - start


@pytest.mark.parametrize("stall", slow_but(["a lock"], STALLS))
def test_a_stall_fails_its_test_and_the_run_ends(tmp_path, stall):
    said, seconds = run(tmp_path, STALLS[stall], "--numprocesses", "2", "--dist", "worksteal")
    assert "1 failed, 2 passed" in said and "crashed while running" in said
    assert "::test_planted" in said
    assert said.count("(most recent call first)") >= 2  # stacks of all threads
    assert "in test_planted" in said and "Timeout (0:00:02)" in said
    assert seconds < 60


def test_a_process_that_dies_fails_its_test_and_the_run_ends(tmp_path):
    said, _ = run(tmp_path, "os._exit(0)", "--numprocesses", "2", "--dist", "worksteal")
    assert "1 failed, 2 passed" in said and "crashed while running" in said


def test_a_stall_ends_a_run_in_one_process(tmp_path):
    said, seconds = run(tmp_path, STALLS["native code that holds Python's lock"])
    assert "in test_planted" in said and seconds < 60
