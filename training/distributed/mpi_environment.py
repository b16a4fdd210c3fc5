"""Whether what mpiexec or srun says in the environment agrees with this MPI, and with the flags.

Variables of another MPI's mpiexec, or left over from a program that was started by one, would
otherwise make each process train alone, all of them in the same folder.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

from utils import UserError

from .cluster import MPI_VARIABLES, Hosts
from .process_group import MPI


def check_connection() -> None:
    """Raise UserError when the connection to mpiexec that the environment names is not there.

    MPI would end the process with a page of messages.
    """
    with suppress(KeyError, ValueError):
        try:
            os.fstat(int(os.environ["PMI_FD"]))
        except OSError:
            raise _refused("PMI_FD names a connection to an mpiexec that is not there") from None


def check(size: int, ngpus: int) -> None:
    """Raise UserError unless MPI's number of processes is the one that was asked for.

    Args:
        size: number of processes in MPI.
        ngpus: value of --ngpus.
    """
    for rank_name, size_name in MPI_VARIABLES.items():
        with suppress(KeyError, ValueError):
            said = int(os.environ[size_name])
            if rank_name in os.environ and said != size:
                raise _refused(
                    f"{size_name} in the environment says {said} processes, but MPI here has {size}"
                )
    if size == 1 and ngpus > 1:
        name = next(name for name in MPI_VARIABLES if name in os.environ)
        raise _refused(f"--ngpus {ngpus}, but {name} says that mpiexec has started this process")


def check_flags(ngpus: int, hosts: Hosts, workers: MPI) -> None:
    """Raise UserError where flags say something else than the user's mpiexec."""
    names = list(dict.fromkeys(workers.hosts))
    here = names.index(workers.hosts[workers.rank])
    for flag, given, default, actual, what in (
        ("--ngpus", ngpus, 1, workers.local_size, "workers on this host"),
        ("--world-size", hosts.count, 1, len(names), "hosts"),
        ("--rank", hosts.number, 0, here, "as the number of this host"),
    ):
        if given not in (default, actual):
            raise UserError(
                f"{flag} {given} contradicts the mpiexec around it, which has {actual} {what}; "
                f"leave {flag} out, because mpiexec's -n and -hosts decide it"
            )


def _refused(what: str) -> UserError:
    names = [*MPI_VARIABLES, *MPI_VARIABLES.values(), "PMI_FD"]
    names = [name for name in names if name in os.environ]
    unset = " ".join(f"-u {name}" for name in names if not name.startswith("SLURM"))
    own = Path(sys.executable).with_name("mpiexec")
    return UserError(
        f"{what}; start the processes with {own if own.exists() else 'the mpiexec of this MPI'}, "
        f"or, if no mpiexec is meant to, with: env {unset} python {sys.argv[0]} ..."
    )
