"""benchmark.py all-reduce: what is averaged and by how many, not how fast it is."""

import json
import subprocess
import sys

from models import create

import pytest

from tests.support import ROOT


@pytest.mark.slow
def test_the_gradients_of_a_network_are_averaged_by_all_workers():
    command = ["benchmark.py", "all-reduce", "--arch", "RepGhost050", "--ngpus", "2", "--json"]
    out = subprocess.check_output([sys.executable, *command, "--rounds", "2"], cwd=ROOT, text=True)
    (row,) = json.loads(out)
    parameters = sum(parameter.size for parameter in create("RepGhost050").parameters())
    assert (row["workers"], row["hosts"], row["megabytes"]) == (2, 1, parameters * 4 / 1e6)
    assert 0 < row["fastest"] <= row["seconds"] <= row["slowest"]


def test_one_worker_alone_has_nothing_to_average(command):
    status, out, err = command("benchmark", "all-reduce")
    assert (status, out) == (2, "") and "give --ngpus 2, or for several hosts" in err
