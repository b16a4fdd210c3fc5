"""`make gpu-check` runs whole on the stand-ins, so that on a GPU only the GPU can fail."""

import faulthandler
import subprocess
import sys

import pytest

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
