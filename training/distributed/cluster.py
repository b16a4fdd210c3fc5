"""The place of this process in a run that mpiexec or Slurm has started, by their variables."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from utils import UserError

# The rank -> the number of processes: of MPICH and Intel MPI, PMIx under Slurm, and Open MPI.
MPI_VARIABLES = {
    "PMI_RANK": "PMI_SIZE",
    "PMIX_RANK": "SLURM_STEP_NUM_TASKS",
    "OMPI_COMM_WORLD_RANK": "OMPI_COMM_WORLD_SIZE",
}


@dataclass(frozen=True)
class Hosts:
    """The hosts of a run on GPUs whose command is started on each of them, as its flags say.

    Attributes:
        count: number of hosts.
        number: number of this host, counted from 0.
        address, port: where host 0 listens.
    """

    count: int = 1
    number: int = 0
    address: str = "localhost"
    port: int = 23456


ONE_HOST = Hosts()


class Task(NamedTuple):
    """A task of Slurm's srun.

    Attributes:
        rank, size: number of this task and number of all tasks.
        local_rank: number of this task among those on its host.
        address: name of the first host, where rank 0 runs.
    """

    rank: int
    size: int
    local_rank: int
    address: str


def mpi_rank(variables: Mapping[str, str] = os.environ) -> int | None:
    """Return the rank that mpiexec (MPICH, Intel MPI, Open MPI) or srun with MPI gave, or None."""
    for name in MPI_VARIABLES:
        with suppress(KeyError, ValueError):
            return int(variables[name])
    return None


def slurm_task(variables: Mapping[str, str] = os.environ) -> Task | None:
    """Return this process's task of a run that srun has started without MPI, or None.

    A batch script has a task's variables too, but no step: a command in it starts its own workers.

    Raises UserError where Slurm's variables cannot be understood.
    """
    if mpi_rank(variables) is not None or "SLURM_STEP_ID" not in variables:
        return None
    try:
        size, rank = int(variables["SLURM_NTASKS"]), int(variables["SLURM_PROCID"])
        local_rank = int(variables["SLURM_LOCALID"])
        hosts = variables.get("SLURM_STEP_NODELIST") or variables["SLURM_NODELIST"]
    except KeyError:  # not in a task
        return None
    except ValueError as error:
        raise UserError(
            f"Slurm's variables SLURM_NTASKS, SLURM_PROCID and SLURM_LOCALID are to be whole "
            f"numbers ({error}); start the run by srun, or unset them"
        ) from None
    return Task(rank, size, local_rank, first_host(hosts)) if size > 1 else None


def gpu(local_rank: int, variables: Mapping[str, str] = os.environ) -> int:
    """Return the number of a worker's GPU among those that it sees.

    With --gpus-per-task, Slurm shows each task its own GPU alone.
    """
    return 0 if "SLURM_GPUS_PER_TASK" in variables else local_rank


def first_host(hosts: str) -> str:
    """Return the first host of a list as Slurm writes it: "a1,a2", "a[01-04,7]" or "a[1-2]b[3-4]".

    Raises UserError where that is not such a list.
    """
    # the first of each bracket's numbers, which keep their zeros: "a[01-04,7]" begins with a01
    first = re.sub(r"\[([^]\-,]+)[^]]*\]", r"\1", hosts).partition(",")[0]
    if not re.fullmatch(r"[\w.-]+", first):
        raise UserError(
            f"SLURM_NODELIST {hosts} is not a list of hosts such as node[01-04]; give the first "
            "host by --dist-addr"
        )
    return first
