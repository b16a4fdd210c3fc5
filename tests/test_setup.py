"""Finding Python 3.10, and the table of networks."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.models.test_variants import TABLE
from tests.support import ROOT


@pytest.fixture
def find(tmp_path):
    """Runs scripts/find-python310 with nothing but the given programs on PATH, in an empty home."""

    def run(**programs):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name, script in programs.items():
            program = folder / name.replace("python310", "python3.10")
            program.write_text(f"#!/bin/sh\n{script}\n")
            program.chmod(0o755)
        environment = {"PATH": str(folder), "HOME": str(tmp_path)}
        shell = shutil.which("sh")
        return subprocess.run(
            [shell, ROOT / "scripts" / "find-python310"],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )

    return run


THIS = os.path.realpath(sys.executable)
MISSING = 'echo "command not found" >&2; exit 127'  # what a pyenv shim says of an inactive version
OTHER = "exit 1"  # a Python of another version fails the check


def test_python_310_on_path(find):
    done = find(python310=f'exec "{sys.executable}" "$@"')
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable)


def test_a_pyenv_that_holds_one_though_it_is_not_active(find, tmp_path):
    version = tmp_path / "root" / "versions" / "3.10.99" / "bin"
    version.mkdir(parents=True)
    (version / "python").symlink_to(THIS)
    done = find(python310=MISSING, python3=OTHER, pyenv=f"echo {tmp_path}/root")
    assert (done.returncode, done.stdout.strip()) == (0, str(version / "python"))


def test_uv(find):
    done = find(python3=OTHER, uv=f'[ "$1 $2" = "python find" ] && echo "{sys.executable}"')
    assert (done.returncode, done.stdout.strip()) == (0, sys.executable)


def test_only_another_python_is_one_sentence(find):
    done = find(python3=OTHER, python310=MISSING)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and "install it" in done.stderr


def test_make_help_lists_the_targets():
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("demo", "test", "lint", "bench"):
        assert f"make {target}" in done.stdout


@pytest.mark.parametrize("name", ["docs/networks.md", "docs/zh/networks.md"])
def test_the_table_is_what_the_networks_are(name):
    page = (ROOT / name).read_text()
    for arch, (train, deploy, macs, deploy_macs, _) in TABLE.items():
        parameters = f"{train / 1e6:.2f} M → {deploy / 1e6:.2f} M"
        multiply_adds = f"{macs / 1e9:.2f} G → {deploy_macs / 1e9:.2f} G"
        assert f"| {arch} | {parameters} | {multiply_adds} |" in page, "run `make docs-update`"


def test_megengine_starts_silently():
    code = "import models, megengine; print((megengine.Tensor([1.0]) + 1).numpy())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("[2.]\n", "")
