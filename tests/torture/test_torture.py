"""The short form of `make torture`: each of its programs, a few times."""

import re
import subprocess
import sys

import pytest

from tests.support import ROOT


def run(program, *flags):
    command = [sys.executable, ROOT / "tests" / "torture" / program, *flags]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_damaged_files_are_a_sentence_or_a_result():
    status, said = run("mutate.py", "--files", "60", "--seed", "0")
    assert status == 0, said
    assert re.search(r"60 files: \d+ results, \d+ sentences, 0 failures", said), said


@pytest.mark.slow
@pytest.mark.parametrize("program", ["stop.py", "kill.py"])
def test_interrupted_runs_end_with_the_same_bits(program):
    status, said = run(program, "--times", "2", "--seed", "0")
    assert status == 0, said


@pytest.mark.slow
def test_a_failure_is_named_and_can_be_repeated(tmp_path):
    """A limit of no time makes every file a failure."""
    program = (
        "import sys; sys.argv = sys.argv[1:]; sys.path.insert(0, 'tests/torture'); import mutate; "
        "mutate.SECONDS = 0; mutate.__file__ = 'tests/torture/mutate.py'; sys.exit(mutate.main())"
    )
    command = [sys.executable, "-c", program, "mutate.py", "--files", "2", "--first", "7"]
    done = subprocess.run(
        [*command, "--seed", "3", "--keep", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1 and done.stdout.count("FAILED: ") == 2, done.stderr
    (again,) = list(tmp_path.glob("8-*"))
    content = again.read_bytes()
    command[command.index("7")] = "8"
    command[command.index("2")] = "1"
    subprocess.run([*command, "--seed", "3", "--keep", tmp_path], cwd=ROOT, capture_output=True)
    assert again.read_bytes() == content
