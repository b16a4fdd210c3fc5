"""`make gpu-check` runs whole on the stand-ins, so that on a GPU only the GPU can fail."""

import faulthandler
import subprocess
import sys
import time

import pytest

from tests.gpu import check
from tests.support import ROOT

CHECK = [sys.executable, str(ROOT / "tests" / "gpu" / "check.py")]


@pytest.mark.slow
def test_all_checks_pass_on_the_stand_ins():
    faulthandler.cancel_dump_traceback_later()  # longer than other tests may take
    process = subprocess.run(
        [*CHECK, "--stand-in"], capture_output=True, text=True, cwd=ROOT, timeout=1200
    )
    rows = [line.split(" | ") for line in process.stdout.splitlines() if line.startswith("| ")]
    assert process.returncode == 0 and len(rows) == 2 + 12, process.stdout + process.stderr
    assert {row[1] for row in rows[2:]} == {"passed"}
    notes = {row[0].removeprefix("| "): row[3] for row in rows}
    assert notes["training on the digits"].startswith("best top-1 ")
    assert "resumed after step " in notes["resuming after SIGKILL"]
    assert notes["exported file and the GPU's logits"].startswith("relative error ")


def test_without_a_gpu_that_is_said():
    process = subprocess.run(
        CHECK,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"CUDA_VISIBLE_DEVICES": "", "PATH": ""},
    )
    assert process.returncode == 2
    assert process.stderr.startswith("gpu-check: error: CUDA's driver shows no GPU here")


def test_the_checks_end_in_time(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    checks = check.Checks(tmp_path, gpus=2, stand_in=True)
    checks.total, checks.each, checks.end = 2, 1, time.monotonic() + 2
    assert not checks.do()
    assert time.monotonic() < checks.end + 30  # ten times what it takes where nothing else runs
    notes = [note for _, result, _, note in checks.rows if result == "FAILED"]
    assert len(notes) == 12 and notes[0] == "not done after 1 s"
    assert notes[-1] == "not begun within 2 s"
