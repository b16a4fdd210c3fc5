"""Who may import whom: arrows between the rooms go down only, and no files import in a circle."""

import ast
from functools import cache

import pytest

from tests.support import ROOT

ROOMS = ["models", "data", "weights", "deployment", "training", "benchmarks"]  # from the bottom up
SHARED = {"utils", "cli"}  # which all may use but models; utils imports nothing of the project


def modules(root):
    """Module name -> file, of the rooms and of the commands beside them."""
    files = [*root.glob("*.py"), *(file for room in ROOMS for file in root.glob(f"{room}/**/*.py"))]
    names = {}
    for file in files:
        parts = file.relative_to(root).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return names


@cache
def import_statements(source):
    """Nodes of all imports in a file's text, also those within functions."""
    nodes = ast.walk(ast.parse(source))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def imports(name, names):
    """Modules of the project that one imports, also within functions; not its parent packages."""
    file = names[name]
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    found = set()
    for node in import_statements(file.read_text()):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        else:
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *filter(None, [node.module])])
            inner = {alias.name: f"{base}.{alias.name}" for alias in node.names}
            found |= {whole if whole in names else base for whole in inner.values()}
    return {module for module in found if module in names} - {name}


def level(name):
    """Height of a module's room; commands stand above all."""
    room = name.split(".")[0]
    if room in SHARED:
        return -1
    return ROOMS.index(room) if room in ROOMS else len(ROOMS)


def faults(root):
    """A sentence for each arrow upwards and for each circle."""
    names = modules(root)
    arrows = {name: imports(name, names) for name in names}
    said = []
    for name, targets in arrows.items():
        room = name.split(".")[0]
        for target in sorted(targets):
            to = target.split(".")[0]
            upwards = level(target) > level(name) and not (room == "cli" and to == "models")
            if upwards or (room == "models" and to != "models"):
                said.append(f"{name} imports {target}, which is above it")
    path, done = [], set()

    def visit(name):
        if name in path:
            said.append(" -> ".join([*path[path.index(name) :], name]))
        elif name not in done:
            path.append(name)
            for target in sorted(arrows[name]):
                visit(target)
            path.pop()
            done.add(name)

    for name in sorted(names):
        visit(name)
    return said


def test_arrows_go_down_and_there_is_no_circle():
    assert len(modules(ROOT)) > 80
    assert faults(ROOT) == []


PLANTS = {
    "an arrow upwards": ("data/loader.py", "from training import loop", "data.loader imports"),
    "in a function": ("weights/files.py", "def f():\n    import deployment.network", "is above it"),
    "models leave their room": ("models/init.py", "import utils", "models.init imports utils"),
    "a command": ("deployment/network.py", "import train", "deployment.network imports train"),
    "utils": ("utils.py", "import data.decoding", "utils imports data.decoding"),
    "a circle": ("data/transforms.py", "from . import loader", "data.loader -> "),
}


@pytest.mark.parametrize("file, line, said", PLANTS.values(), ids=PLANTS)
def test_a_planted_one_is_found(tmp_path, file, line, said):
    for source in modules(ROOT).values():
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(source.read_bytes())
    assert faults(tmp_path) == []
    with open(tmp_path / file, "a") as planted:
        planted.write(f"\n{line}\n")
    assert any(said in sentence for sentence in faults(tmp_path))
