"""How training scales over hosts: the all-reduce as measured, and what that means for a step.

    python -m tests.training.scaling

measures the all-reduce of RepVGGA0's gradients between 2 and 4 "hosts" on this machine at 1 and 10
Gbit/s and without a limit. It needs root, and tc for the limits, and takes three minutes. It writes
the records all_reduce and scaling, from which docs/training.md has its tables.

The fit is to the fastest rounds: whatever else the machine does can only make others slower.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import record
from tests.support import ROOT
from tests.training.hosts import Hosts, missing
from training.distributed import launch

ROUNDS, TURNS = 15, 3  # all-reduces in a turn, and turns of each setting
IMAGES = 512  # of a step, over all hosts
# images/s of a host: as in the record train_workers of two cores, and with 16 times the cores
SLOW, FAST = 17.0, 272.0


def measure(hosts: Hosts, count: int) -> dict:
    """A row of benchmark.py all-reduce with a worker on each host."""
    benchmark = [sys.executable, "benchmark.py", "all-reduce", "--rounds", ROUNDS, "--json"]
    mpiexec = [launch.mpiexec(1)[0], *hosts.launch, "-n", count]
    command = hosts.command("node-a", *mpiexec, *benchmark)
    (row,) = json.loads(subprocess.check_output(command, cwd=ROOT))
    return row


def all_reduce() -> list[dict]:
    """The median of all turns' medians for each number of hosts and each limit."""
    rows = []
    for count in (2, 4):
        with tempfile.TemporaryDirectory() as folder:
            hosts = Hosts(Path(folder), count)
            try:
                turns = []
                for gigabits in TURNS * [1, 10, None]:
                    hosts.limit(gigabits)
                    row = measure(hosts, count)
                    turns.append({"gigabits": gigabits, "cores": os.cpu_count(), **row})
                    print(turns[-1], file=sys.stderr)
            finally:
                hosts.close()
        for gigabits in (1, 10, None):
            same = [turn for turn in turns if turn["gigabits"] == gigabits]
            rows.append(
                same[0]
                | {
                    "seconds": statistics.median(turn["seconds"] for turn in same),
                    "fastest": min(turn["fastest"] for turn in same),
                    "slowest": max(turn["slowest"] for turn in same),
                }
            )
    return rows


def terms(row: dict) -> tuple[float, float]:
    """What the seconds of an all-reduce are a sum of: on the wire, and per byte in the hosts.

    The hosts here share the cores of one machine. Each host sends 2 (N - 1) / N times the
    gradients, as in Rabenseifner's algorithm, which MPICH uses: R. Thakur, R. Rabenseifner, W.
    Gropp. Optimization of Collective Communication Operations in MPICH. 2005.
    """
    sent = 2 * (row["workers"] - 1) / row["workers"] * row["megabytes"] / 1e3  # GB
    wire = 8 * sent / row["gigabits"] if row["gigabits"] else 0.0
    return wire, sent * max(1, row["workers"] / row["cores"])


def fit(rows: list[dict]) -> np.ndarray:
    """The weights of `terms`, by least squares of the relative errors."""
    seconds = np.array([row["fastest"] for row in rows])
    matrix = np.array([terms(row) for row in rows])
    return np.linalg.lstsq(matrix / seconds[:, None], np.ones(len(rows)), rcond=None)[0]


def predict(rows: list[dict]) -> list[dict]:
    """Seconds of an all-reduce and efficiency of a step by the number of hosts.

    The efficiency is the time of a step on one host over N times the time on N hosts. Nothing
    overlaps: the gradients are averaged when all are there.
    """
    weights, megabytes = fit(rows), rows[0]["megabytes"]
    table = []
    for count in (2, 4, 8, 16, 32, 64):
        line = {"hosts": count}
        for gigabits in (1, 10):
            point = {"workers": count, "megabytes": megabytes, "gigabits": gigabits, "cores": count}
            seconds = float(np.dot(weights, terms(point)))
            line[f"all_reduce_{gigabits}"] = round(seconds, 3)
            for name, speed in ("slow", SLOW), ("fast", FAST):
                compute = IMAGES / speed
                efficiency = compute / (compute + count * seconds)
                line[f"{name}_{gigabits}"] = round(100 * efficiency, 1)
        table.append(line)
    return table


def main() -> None:
    reason = missing()
    if reason:
        raise SystemExit(f"scaling: {reason}")
    rows = all_reduce()
    record.write("all_reduce", rows)
    record.write("scaling", predict(rows))
    for row in rows:
        guess = float(np.dot(fit(rows), terms(row)))
        print(row["hosts"], row["gigabits"], f"{row['fastest']:.3f} s, fitted {guess:.3f} s")


if __name__ == "__main__":
    main()
