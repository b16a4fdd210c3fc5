"""How CPU workers are started: another MPI's variables, the input, and the working directory."""

import os
import subprocess
import sys

import pytest

from data import cgroup
from tests.support import ROOT
from training.distributed import cluster, launch, mpi_environment, worker
from training.distributed.worker_monitor import WorkerMonitor
from training.signals import StopSignal
from utils import UserError

VARIABLES = ("PMI_RANK", "PMI_SIZE", "PMI_FD", "PMIX_RANK", "SLURM_STEP_NUM_TASKS",
             "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    """A function that sets the variables of an mpiexec, and no others."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)

    def put(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, str(value))

    return put


def test_the_rank_of_any_mpiexec_is_seen(environment):
    assert cluster.mpi_rank() is None
    environment(OMPI_COMM_WORLD_RANK=3)
    assert cluster.mpi_rank() == 3
    environment(PMI_RANK=1)
    assert cluster.mpi_rank() == 1


@pytest.mark.parametrize(
    "variables, size, ngpus, sentence",
    [
        ({"PMI_RANK": 0, "PMI_SIZE": 2}, 2, 2, None),
        ({"PMI_RANK": 0, "PMI_SIZE": 1}, 1, 1, None),
        ({"PMIX_RANK": 0, "SLURM_STEP_NUM_TASKS": 2}, 2, 1, None),
        ({"PMIX_RANK": 0}, 2, 1, None),
        ({"SLURM_STEP_NUM_TASKS": 5, "PMI_RANK": 0}, 2, 1, None),
        (
            {"OMPI_COMM_WORLD_RANK": 0, "OMPI_COMM_WORLD_SIZE": 4},
            1,
            1,
            "OMPI_COMM_WORLD_SIZE in the environment says 4 processes, but MPI here has 1; start",
        ),
        ({"PMI_RANK": 0, "PMI_SIZE": 4}, 1, 1, "or, .*: env -u PMI_RANK -u PMI_SIZE python"),
        ({"PMI_RANK": 0, "PMI_SIZE": 1}, 1, 2, "--ngpus 2, but PMI_RANK says that mpiexec has"),
    ],
)
def test_another_size_than_mpis_is_refused(environment, variables, size, ngpus, sentence):
    environment(**variables)
    if sentence is None:
        mpi_environment.check(size, ngpus)
    else:
        with pytest.raises(UserError, match=sentence):
            mpi_environment.check(size, ngpus)


def test_a_connection_that_is_not_there_is_refused(environment):
    mpi_environment.check_connection()
    reader, writer = os.pipe()
    environment(PMI_RANK=0, PMI_FD=reader)
    mpi_environment.check_connection()
    os.close(reader)
    os.close(writer)
    with pytest.raises(UserError, match="PMI_FD names a connection .*-u PMI_FD"):
        mpi_environment.check_connection()


# two workers print how many they are, and their parent what is left of the input
PROGRAM = """
import sys, utils
from training.distributed import launch, cluster
def work(workers):
    if workers.rank == 0:
        print(workers.size, "workers", flush=True)
    return 0
def main():
    status = launch.run(work, 2)
    if cluster.mpi_rank() is None:  # the parent
        print(sys.stdin.read())
    return status
utils.run(main)
"""


def test_workers_are_bound_to_cores_that_this_process_may_use():
    mine = max(os.sched_getaffinity(0))
    program = (
        "import os, subprocess, sys; from training.distributed import launch\n"
        f"os.sched_setaffinity(0, [{mine}])\n"
        "show = [sys.executable, '-c', 'import os; print(os.sched_getaffinity(0))']\n"
        "subprocess.run([*launch.mpiexec(1), *show])"
    )
    out = subprocess.check_output([sys.executable, "-c", program], cwd=ROOT, text=True)
    assert out == f"{{{mine}}}\n"


def test_workers_share_no_core(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(2, 10)))
    monkeypatch.setattr(launch, "_core", lambda cpu: (cpu % 2, cpu // 2 % 2))  # two threads a core
    assert launch.mpiexec(2)[-2:] == ["-bind-to", "user:4+8+2+6,5+9+3+7"]
    assert launch.mpiexec(3)[-2:] == ["-bind-to", "user:4+8,2+6,5+9"]
    assert "-bind-to" not in launch.mpiexec(5)


def test_workers_leave_the_input_alone_and_import_nothing_of_the_working_directory(tmp_path):
    program, place = tmp_path / "program.py", tmp_path / "place"
    program.write_text(PROGRAM)
    place.mkdir()
    for name in ("utils.py", "random.py", "ctypes.py", "signal.py"):
        (place / name).write_text("raise SystemExit('the wrong file was imported')\n")
    done = subprocess.run(
        [sys.executable, program],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        input="the rest\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[:2] == ["2 workers", "the rest"]


def test_a_worker_killed_for_memory_is_said_to_be(tmp_path, monkeypatch):
    monitor = WorkerMonitor(tmp_path, 2, StopSignal())
    monitor._first = 1
    assert "memory" not in monitor.verdict("exit status 1")
    assert "it was probably killed for lack of memory" in monitor.verdict("killed")
    monkeypatch.setattr(cgroup, "kills", lambda: 1 << 40)
    assert "it was killed for lack of memory: the limit of" in monitor.verdict("killed")


@pytest.mark.parametrize(
    ("cores", "sharers", "threads"), [(8, 2, "4"), (8, 1, None), (2, 4, "1"), (3, 2, "1")]
)
def test_workers_that_are_not_bound_share_their_cores(cores, sharers, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(cores))
    worker._share_cores(sharers)
    assert os.environ.get("OMP_NUM_THREADS") == threads
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
