"""The notebooks in examples/, executed whole."""

import faulthandler
import re

import nbclient
import nbformat
import pytest

from tests.support import ROOT

NOTEBOOKS = sorted((ROOT / "examples").glob("*.ipynb"))


@pytest.fixture
def execute(tmp_path, monkeypatch):
    """A function that runs all cells of a notebook: (all text it prints, number of pictures)."""
    # what Jupyter and the notebooks write of their own accord
    for name in ("HOME", "IPYTHONDIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "TMPDIR"):
        folder = tmp_path / name.lower()
        folder.mkdir()
        monkeypatch.setenv(name, str(folder))

    def run(name):
        # two minutes of training are more on a busy machine than one test may usually take
        faulthandler.dump_traceback_later(900, exit=True)
        notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
        where = {"metadata": {"path": str(ROOT / "examples")}}
        nbclient.NotebookClient(notebook, timeout=600, resources=where).execute()
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        text = "".join(output.text for output in outputs if output.output_type == "stream")
        return text, sum("image/png" in output.get("data", {}) for output in outputs)

    return run


@pytest.mark.slow
def test_quickstart(execute):
    text, pictures = execute("quickstart.ipynb")
    assert pictures == 2
    assert re.search(r"same class: 100% of 360 images\nequal$", text, re.M)
    line = r"^(float32|int8): top-1 ([\d.]+)%, ([\d.]+) MB$"
    top1, megabytes = {}, {}
    for name, percent, size in re.findall(line, text, re.M):
        top1[name], megabytes[name] = float(percent), float(size)
    assert top1["float32"] > 90 and abs(top1["float32"] - top1["int8"]) < 5
    assert megabytes["int8"] < 0.3 * megabytes["float32"]


@pytest.mark.slow
def test_from_timm(execute):
    text, _ = execute("from_timm.ipynb")
    assert float(re.search(r"^relative error: (\S+)$", text, re.M)[1]) <= 1e-5


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_what_is_stored_is_small_and_of_no_machine(path):
    assert path.stat().st_size < 100_000
    stored = path.read_text()
    assert not re.search(r"/(tmp|home|root|Users)/", stored)
    notebook = nbformat.reads(stored, as_version=4)
    assert all(
        output.output_type != "error" for c in notebook.cells for output in c.get("outputs", [])
    )
