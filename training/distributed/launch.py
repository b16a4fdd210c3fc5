"""Starting the processes of a distributed run, and ending all of them when one fails.

The parent runs mpiexec, which starts the workers, binds them to cores, passes their output on and
ends them all when one is killed. What it does not do is left to the parent: to say why the run
ended, as the last line; to end workers that wait outside of MPI, as those on GPUs do; and to pass a
signal to worker 0 alone, so that all save before they end.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import IO

from models import environment, gpus

import utils
from data import processes
from utils import UserError

from .. import signals
from . import cluster, worker
from .cluster import ONE_HOST, Hosts
from .process_group import Workers
from .worker import FOLDER, Work
from .worker_monitor import WorkerMonitor

# runs its arguments as a command that is killed with its parent (PR_SET_PDEATHSIG)
_EXECUTE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execv(sys.argv[1], sys.argv[1:])
"""


def run(
    work: Work,
    count: int,
    hosts: Hosts = ONE_HOST,
    timeout: float = 120.0,
    advice: str = "",
) -> int:
    """Do `work` in `count` processes on this host; returns the exit status.

    - Within an mpiexec of the user's own, or under Slurm's srun, this process joins the others.
    - Otherwise this very command is started `count` times more, by mpiexec, for GPUs and CPUs
      alike. On GPUs the same may happen on other hosts, and their workers meet where `hosts` says.

    Args:
        work: what each worker does with the group that it is in; returns an exit status.
        count: number of workers on this host; one for each GPU where there are GPUs.
        hosts: several hosts with GPUs, if the command is started on each.
        timeout: seconds without a heartbeat of a worker after which all end.
        advice: what to do after a failure of work that was under way, as the end of a sentence.

    Raises UserError where the machine does not allow it.
    """
    if cluster.mpi_rank() is not None or cluster.slurm_task() is not None:
        return worker.run(work, count, hosts, timeout, advice)
    available = environment.gpu_count()
    if available and count * hosts.count > 1:
        if count > available:
            raise UserError(
                f"--ngpus {count}, but this machine has {available} GPU{'s' * (available > 1)}; "
                f"give --ngpus {available}"
            )
        for gpu in gpus.visible()[:count]:
            if not gpu.is_supported:
                raise UserError(gpus.refusal(gpu) + gpus.OTHER_DEVICES)
        return _supervise(count, hosts, advice)
    if hosts.count > 1:
        raise UserError(
            "--world-size counts hosts with GPUs, and this one has none; several hosts of CPUs "
            "are joined by MPI: mpiexec -n N -hosts A,B python train.py ..."
        )
    environment.hide_unused_gpus()
    return _supervise(count, hosts, advice) if count > 1 else work(Workers())


def refuse_unsupported_gpu(count: int, hosts: int) -> None:
    """Raise UserError where several workers are wanted on GPUs that MegEngine does not run on."""
    gpu = environment.unsupported_gpu()
    if gpu is not None and count * hosts > 1:
        raise UserError(gpus.refusal(gpu) + gpus.OTHER_DEVICES)


def _supervise(count: int, hosts: Hosts, advice: str) -> int:
    """Run this command as `count` processes of MPI; returns when all have ended.

    Signals go to worker 0, which tells the others at the next step; see signals.StopSignal. When
    this process is killed, all are.
    """
    with tempfile.TemporaryDirectory(prefix="workers-") as folder, signals.StopSignal() as stop:
        workers = WorkerMonitor(Path(folder), count, stop, hosts)
        command = [sys.executable, "-I", "-c", _EXECUTE, *mpiexec(count), sys.executable, *sys.argv]
        with processes.signals_held_back():
            process = subprocess.Popen(
                command,
                env=os.environ
                | {
                    FOLDER: folder,
                    "MPIR_CVAR_SUPPRESS_ABORT_MESSAGE": "1",
                    "PYTHONUNBUFFERED": "1",  # lines appear when they are printed
                },
                stdin=subprocess.DEVNULL,  # mpiexec would read what is meant for others
                stdout=subprocess.PIPE,
                start_new_session=True,  # so that Ctrl-C on the terminal reaches this process alone
            )
        watch = threading.Thread(target=workers.watch, args=(process,), daemon=True)
        watch.start()
        try:
            assert process.stdout is not None  # it is a pipe
            explanation = _relay(process.stdout)
            status = process.wait()
            watch.join()
        finally:
            process.kill()
        statuses = workers.statuses()
        if reason := workers.reason():
            utils.fail(reason)
            return max(status or 0 for status in statuses) or 1
        noted = [status for status in statuses if status is not None]
        if len(noted) == count:  # after a signal, here or on another host, 128 + its number
            return max(noted)
        if stop.number is not None and explanation == str(signal.strsignal(stop.number)).lower():
            return 128 + stop.number  # work that has nothing to save
        utils.fail(workers.verdict(explanation or f"exit status {status}", advice))
        return status or 1


def mpiexec(count: int) -> list[str]:
    """Return the start of a command line that runs `count` workers, each on cores of its own.

    Where threads of several workers share cores, two workers took 1.2 times as long.
    """
    beside_python = Path(sys.executable).with_name("mpiexec")
    program = str(beside_python) if beside_python.exists() else shutil.which("mpiexec")
    if program is None:
        raise UserError("there is no mpiexec; install the pinned requirements (make demo does)")
    here = ["-rmk", "user", "-launcher", "fork"]  # not on the hosts that Slurm has given
    return [program, *here, "-n", str(count), *_binding(count)]


def _binding(count: int) -> list[str]:
    """Return the flags of mpiexec that bind each worker to as many whole cores; none for too few.

    Only cores that this process may use are taken, which mpiexec's own "core" does not look at.
    """
    cores: dict[tuple[int, ...], list[str]] = {}  # socket and core -> its hardware threads
    for cpu in sorted(os.sched_getaffinity(0)):
        cores.setdefault(_core(cpu), []).append(str(cpu))
    each = len(cores) // count
    ordered = [cores[core] for core in sorted(cores)]
    shares = (itertools.chain(*ordered[i * each : (i + 1) * each]) for i in range(count))
    return ["-bind-to", "user:" + ",".join(map("+".join, shares))] if each else []


def _core(cpu: int) -> tuple[int, int]:
    """Return the numbers of the socket and of the core that a hardware thread is of (Linux)."""
    topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
    with suppress(OSError, ValueError):
        socket = int((topology / "physical_package_id").read_text())
        return socket, int((topology / "core_id").read_text())
    return 0, cpu


def _relay(stdout: IO[bytes]) -> str:
    """Print all lines but mpiexec's banner; returns the cause of the end that the banner names."""
    explanation, banner = "", False
    for line in stdout:
        text = line.decode(errors="replace")
        if text.startswith("====="):
            banner = True
        elif banner:
            if "EXIT STRING: " in text:
                explanation = text.partition("EXIT STRING: ")[2].partition(" (")[0].strip().lower()
        elif text.strip():
            try:
                print(text, end="", flush=True)
            except OSError:  # nobody reads it: the workers are told to stop
                signals.output_lost()
    return explanation
