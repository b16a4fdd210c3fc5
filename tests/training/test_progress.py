"""Speed, waiting and time left, on a clock of the test's own."""

import subprocess
import sys

import pytest

from tests.support import ROOT
from training.progress import Progress, describe


def test_a_window():
    now = [0.0]

    def slow():
        for batch in range(4):
            now[0] += 0.25
            yield batch

    progress = Progress(batch_size=10, clock=lambda: now[0])
    progress.open(100)
    for _ in progress.watch(slow()):
        now[0] += 1
    with progress.evaluating():
        now[0] += 7
    facts = progress.look(104, steps_left=20, evaluations_left=3)
    assert facts["speed"] == pytest.approx(40 / 5)
    assert facts["waiting"] == pytest.approx(1 / 5)
    assert facts["left"] == pytest.approx(20 * 1.25 + 3 * 7)
    now[0] += 2
    assert progress.look(105, 0, 0) == {"speed": 5.0, "waiting": 0.0, "left": 0.0}


def test_for_people():
    facts = describe(speed=12.4, waiting=0.031, left=1)
    assert facts["images/s"] == "12" and facts["data wait"] == "3 %"
    assert facts["memory"].endswith(" MB")


def test_peak_memory_grows_with_what_is_touched():
    code = """if True:
        from training import memory
        before = memory.peak_memory()
        touched = bytearray(b"x") * (200 << 20)
        print(memory.peak_memory() - before)"""
    grown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert float(grown.stdout.split()[-1]) > 190, grown.stderr
