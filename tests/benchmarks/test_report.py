"""Reports of benchmark.py's sub-commands; their figures are tested with what they measure."""

import argparse
import csv
import io
import json
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from benchmarks import commands, record, report, training_step
from utils import UserError

ROW = {"arch": "RepVGGA0", "size": 64, "batch": 8, "variant": "ours", "seconds": 0.5,
       "fastest": 0.4, "slowest": 0.75, "images_per_second": 16.0, "speedup": 2.0}  # fmt: skip


@pytest.fixture
def without_bfloat16(monkeypatch):
    """A machine without the variant in bfloat16."""
    monkeypatch.setattr(training_step.cpu, "has_bfloat16", lambda: False)


def test_a_step_in_bfloat16_is_a_variant_where_there_is_one(monkeypatch):
    for has in (True, False):
        monkeypatch.setattr(training_step.cpu, "has_bfloat16", lambda has=has: has)
        assert [*training_step.all_variants()] == ["stock", "ours", "ours, --amp"][: 2 + has]


def test_the_same_figures_in_every_form(command, tmp_path, without_bfloat16):
    table, chart = tmp_path / "new" / "rows.csv", tmp_path / "rows.png"
    arguments = ["train", "--arch", "RepGhost050", "--point", "32x2", "32x4", "--rounds", 1]
    status, out, err = command("benchmark", *arguments, "--json", "--csv", table, "--chart", chart)
    assert status == 0, err
    rows = json.loads(out)
    assert [(row["batch"], row["variant"]) for row in rows] == [
        (2, "stock"), (2, "ours"), (4, "stock"), (4, "ours")
    ]  # fmt: skip
    read = list(csv.DictReader(io.StringIO(table.read_text())))
    assert read == [{name: str(value) for name, value in row.items()} for row in rows]
    assert np.ptp(cv2.imread(str(chart))) > 200


def test_the_table():
    absent = {**ROW, "variant": "nothing", "speedup": None}
    head, first, second = report.table([ROW, absent], report.LAYOUTS["train"]).splitlines()
    assert head.split() == ["px", "batch", "s", "fastest", "slowest", "images/s", "x", "stock"]
    assert first.split() == [
        "RepVGGA0",
        "64",
        "8",
        "ours",
        "0.500",
        "0.400",
        "0.750",
        "16.0",
        "2.0",
    ]
    assert second.split()[-1] == "-" and len(first) == len(second) == len(head)


@pytest.mark.parametrize("name", report.LAYOUTS)
def test_a_chart_of_every_layout(name):
    layout = report.LAYOUTS[name]
    row = dict.fromkeys((*layout.columns, layout.value, "size", "batch"), 2)
    row |= {"arch": "RepVGGA0", layout.bar: "a"}
    other = {**row, layout.bar: "b"}
    if layout.color:
        other[layout.color] = 4
    png = report.chart("a title", [row, other], layout)
    assert cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_COLOR).shape[1] > 600


def test_a_file_that_cannot_be_written(command, without_bfloat16):
    arguments = ["--arch", "RepGhost050", "--point", "32x1", "--rounds", 1]
    status, out, err = command("benchmark", "train", *arguments, "--csv", "/dev/null/a.csv")
    assert status == 2 and "cannot save /dev/null/a.csv: /dev/null is no folder; choose" in err
    assert not out and len(err.splitlines()) == 1  # before anything is measured
    status, out, err = command("benchmark", "train", *arguments, "--csv", "a" * 300)
    assert status == 2 and "File name too long" in err and len(err.splitlines()) == 1
    assert len(out.splitlines()) == 4  # what was measured is not lost


def test_files_are_written_where_nobody_reads_the_table(tmp_path, monkeypatch):
    def lost(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("builtins.print", lost)
    args = argparse.Namespace(json=True, record=None, csv=tmp_path / "a.csv", chart=None)
    with pytest.raises(BrokenPipeError):
        report.write_report(args, "a title", [{"images": 3}], report.LAYOUTS["data"])
    assert (tmp_path / "a.csv").read_text() == "images\n3\n"


def test_what_was_measured_before_a_failure_is_reported(command, tmp_path, monkeypatch):
    nets = [SimpleNamespace(arch=name) for name in "abc"]
    monkeypatch.setattr(commands, "networks", lambda *_: [(net, None) for net in nets])

    def measure(network, _):
        if network.arch == bad:
            raise UserError("it stalls")
        return [{"arch": network.arch}]

    bad = "b"
    with pytest.raises(commands.Incomplete, match="it stalls") as stopped:
        commands.of_each_network(None, [1], measure)
    assert stopped.value.rows == [{"arch": "a"}]

    def fails(_):
        raise stopped.value

    monkeypatch.setitem(commands.MEASUREMENTS, "throughput", fails)
    monkeypatch.setattr(record, "write", lambda *_: pytest.fail("a record of a part"))
    flags = ["--json", "--csv", tmp_path / "a.csv", "--record", "x"]
    status, out, err = command("benchmark", "throughput", *flags)
    assert status == 2 and json.loads(out) == [{"arch": "a"}] and "it stalls" in err
    assert (tmp_path / "a.csv").read_text() == "arch\na\n"
    bad = "a"
    with pytest.raises(UserError, match="it stalls") as first:
        commands.of_each_network(None, [1], measure)
    assert not isinstance(first.value, commands.Incomplete)
