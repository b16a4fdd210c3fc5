"""What train.py prints without training: at once, as MegEngine is not imported for it."""

import os
import subprocess
import sys

import models

import pytest

import utils
from tests.support import ROOT

# runs train.py's main, and says on the last line whether that has imported MegEngine
PROGRAM = """
import sys, utils
sys.argv[0] = "train.py"
import train
try:
    utils.run(lambda: train.main(sys.argv[1:]))
finally:
    print("MegEngine:", "megengine" in sys.modules)
"""


def run(*arguments):
    """(exit status, standard output, standard error, whether MegEngine was imported)."""
    process = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, capture_output=True, text=True
    )
    *lines, last = process.stdout.splitlines()
    assert last in ("MegEngine: True", "MegEngine: False")
    return process.returncode, lines, process.stderr, last == "MegEngine: True"


@pytest.mark.parametrize(
    "arguments, status",
    [
        (["--help"], 0),
        (["--show-config"], 0),
        (["--show-config", "--recipe", "repvit"], 0),
        (["--lr", "x"], 2),
        (["--frobnicate"], 2),
        (["--freeze"], 2),
        (["--auto-augment", "v7"], 2),
        (["--recipe", "none"], 2),
    ],
)
def test_help_and_wrong_flags_do_not_import_megengine(arguments, status):
    got, lines, err, imported = run(*arguments)
    assert got == status and not imported
    assert lines if status == 0 else len(err.splitlines()) == 1


def test_names_of_architectures_are_listed_and_checked():
    status, lines, _, imported = run("--list-archs")
    assert status == 0 and lines == models.list_models() and imported
    status, _, err, _ = run("--arch", "RepVGGA9", "--show-config")
    assert status == 2 and len(err.splitlines()) == 1
    assert "argument --arch: unknown architecture 'RepVGGA9'; the nearest names are" in err
    assert err.rstrip().endswith("(see train.py --help)")
    status, lines, _, _ = run("--arch", "repvgg_a1", "--show-config")
    assert status == 0 and "arch = RepVGGA1" in lines


@pytest.mark.parametrize("can_be_written", [True, False])
def test_the_list_of_fonts_is_kept_where_it_can_be_written(monkeypatch, can_be_written):
    monkeypatch.setenv("MPLCONFIGDIR", "somewhere")  # so that what there was comes back
    monkeypatch.delenv("MPLCONFIGDIR")
    monkeypatch.setattr(os, "access", lambda *_: can_be_written)
    with pytest.raises(SystemExit):
        utils.run(lambda: 0)
    assert ("MPLCONFIGDIR" in os.environ) == can_be_written
