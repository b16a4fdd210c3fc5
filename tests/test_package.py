"""What `pip install .` gives: the networks as `reparam_megengine`, and nothing else."""

import ast
import email
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from shutil import copy2, copytree, ignore_patterns

import models

import pytest
from packaging.requirements import Requirement

from tests.support import ROOT

PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
SCRIPT = """
import models
import reparam_megengine as rm
import megengine as mge
import numpy as np

assert models.MINE
net = rm.create("repvgg_a0")
net.eval()
x = mge.Tensor(np.ones((1, 3, 64, 64), np.float32))
maps = net.features(x)
deployed = rm.to_deploy(net)
error = np.abs(deployed(x).numpy() - net(x).numpy()).max() / np.abs(net(x).numpy()).max()
assert error <= 1e-5, error
print([tuple(m.shape) for m in maps], *rm.profile(net, 224), *rm.profile(deployed, 224))
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built without a network from a copy, in which setuptools may leave its folders."""
    source, out = (tmp_path_factory.mktemp(name) for name in ("source", "wheel"))
    copytree(ROOT / "models", source / "models", ignore=ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "LICENSE"):
        copy2(ROOT / name, source)
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*PIP, "wheel", *offline, "--wheel-dir", out, source], check=True)
    (file,) = out.iterdir()
    return file


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """An interpreter whose environment has the wheel, and beside it what this one has."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    install = ["--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run([*PIP, *install], check=True)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "shared.pth").write_text(sysconfig.get_path("purelib"))
    return python


def test_the_wheel_holds_the_package_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    package = {
        f"reparam_megengine/{file.relative_to(ROOT / 'models')}": file.read_bytes()
        for file in (ROOT / "models").rglob("*.py")
    }
    assert package.items() <= contents.items()
    (information,) = {name.split("/")[0] for name in contents if ".dist-info/" in name}
    assert contents.keys() - package.keys() == {
        f"{information}/{name}"
        for name in ("METADATA", "RECORD", "WHEEL", "top_level.txt", "licenses/LICENSE")
    }
    assert contents[f"{information}/licenses/LICENSE"] == (ROOT / "LICENSE").read_bytes()


def test_the_pinned_requirements_are_among_those_that_the_package_takes(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    assert metadata["Requires-Python"] == "<3.11,>=3.10"
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)", (ROOT / "requirements.txt").read_text(), re.M))
    stated = list(map(Requirement, metadata.get_all("Requires-Dist")))
    needed = {one.name for one in stated if one.marker is None}
    assert needed == {"megengine", "numpy", "setuptools"}
    fast = {one.name for one in stated if str(one.marker) == 'extra == "fast"'}
    assert fast == {"numba", "onednn-cpu-gomp", "scikit-learn"}
    assert len(needed | fast) == len(stated)
    assert all(one.specifier.contains(pins[one.name]) for one in stated)


def test_the_networks_call_their_own_package_by_no_name():
    for file in (ROOT / "models").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            assert not any(name.split(".")[0] == "models" for name in names), file


def test_it_works_in_another_folder_beside_a_package_called_models(python, tmp_path):
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("MINE = True\n")
    (tmp_path / "mine.py").write_text(SCRIPT)
    done = subprocess.run(
        [python, "mine.py"],
        cwd=tmp_path,
        env={"PATH": "", "HOME": str(tmp_path)},  # nothing that `models` has set for this process
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    net = models.create("RepVGGA0")
    sizes = (*models.profile(net, 224), *models.profile(models.to_deploy(net), 224))
    shapes = [(1, 48, 16, 16), (1, 96, 8, 8), (1, 192, 4, 4), (1, 1280, 2, 2)]
    assert done.stdout == f"{shapes} {' '.join(map(str, sizes))}\n"
