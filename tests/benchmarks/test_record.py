"""--record NAME: a file of figures with the command, the machine and the versions."""

import json
import os
import re
import sys
from datetime import date
from importlib import metadata

import models

import pytest

from benchmarks import record
from data.transforms import Preprocessing
from scripts import make_docs
from weights import checkpoint


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(record, "FOLDER", tmp_path / "docs" / "results")
    return record.FOLDER


@pytest.mark.slow
def test_a_record_of_each_command(command, folder, photos, small_checkpoint, monkeypatch):
    """Its figures are what --json prints."""
    data = ["data", "--data", photos, "--size", 32, "--images", 8, "--batch-size", 4, "--rounds", 1]
    test = ["--model", small_checkpoint, "--data", photos, "--size", 32]
    int8 = ["--model", small_checkpoint, "--calibration", photos / "train", "--images", 2,
            "--out", photos.parent / "a.onnx"]  # fmt: skip
    for name, arguments in (("benchmark", data), ("test", test), ("quantize", int8)):
        monkeypatch.setattr(sys, "argv", [f"/somewhere/{name}.py", *map(str, arguments)])
        status, out, err = command(name, *arguments, "--json", "--record", f"{name}-1.0")
        assert status == 0, err
        text = (folder / f"{name}-1.0.json").read_text()
        assert str(photos.parent) not in text
        contents = json.loads(text)
        assert list(contents)[:5] == ["command", "date", "machine", "versions", "figures"]
        assert make_docs.read_record(folder.parent.parent, f"{name}-1.0") == contents
        assert name in make_docs.caption(contents, f"{name}-1.0", "a.json", [])
        assert contents["command"].startswith(f"python {name}.py ")
        assert contents["date"] == date.today().isoformat()
        assert f"{len(os.sched_getaffinity(0))} cores, " in contents["machine"]
        assert contents["versions"]["megengine"] == metadata.version("megengine")
        shortened = out.replace(f"{photos.parent}/", "").replace("photos/train", "train")
        printed = json.loads(shortened)
        rows = {"test": "results", "quantize": "networks"}.get(name)
        expected = printed if rows is None else printed.pop(rows)
        assert contents["figures"] == expected
        assert contents.get("about") == (None if rows is None else printed)
    assert sorted(path.name for path in folder.iterdir()) == [
        "benchmark-1.0.json", "quantize-1.0.json", "test-1.0.json"
    ]  # fmt: skip


@pytest.fixture
def photos(image_folder):
    return image_folder()


@pytest.fixture
def small_checkpoint(tmp_path, small_repvgg_a0):
    model = models.create("RepVGGA0", 3)
    contents = checkpoint.of_model(model, Preprocessing(size=32), ["apple", "pear", "plum"])
    checkpoint.save(contents, tmp_path / "small.pkl")
    return tmp_path / "small.pkl"


def test_parent_folders_are_left_out_and_addresses_kept(folder):
    record.write(
        "a", [{"file": "/some/where/a.pkl", "page": "https://example.com/a/b", "own": "a/b"}]
    )
    figures = json.loads((folder / "a.json").read_text())["figures"]
    assert figures == [{"file": "a.pkl", "page": "https://example.com/a/b", "own": "a/b"}]


@pytest.mark.parametrize("name", ["a/b", "..", "-a", "a b", "ä"])
def test_a_name_that_cannot_be_a_file_is_one_sentence(command, folder, name):
    status, out, err = command("benchmark", "train", f"--record={name}")
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert "is not a name of letters, digits" in err and "such as repvgg_a0-int8" in err
    assert not folder.exists()


def test_a_record_that_cannot_be_written_is_one_sentence(command, folder):
    folder.parent.write_text("a file where the folder should be")
    arguments = ["train", "--arch", "RepGhost050", "--point", "32x1", "--rounds", 1]
    status, _, err = command("benchmark", *arguments, "--record", "a")
    assert status == 2 and err.count("\n") == 1 and "cannot save" in err and "a.json" in err


def test_machine_prints_what_a_bug_report_needs(command, monkeypatch, tmp_path):
    status, out, _ = command("benchmark", "machine")
    lines = dict(line.split(": ", 1) for line in out.splitlines())
    assert (status, lines["machine"], lines["commit"]) == (0, record.machine(), record.commit())
    assert re.fullmatch(r"\w{7,40}(-dirty)?", lines["commit"])
    assert lines["megengine"] == metadata.version("megengine")
    monkeypatch.setenv("PATH", str(tmp_path))  # without git
    assert "commit: unknown" in command("benchmark", "machine")[1]
