"""Starting the processes of a distributed run, and ending all of them when one fails.

The parent runs mpiexec, which starts the workers, binds them to cores, passes their output on and
ends them all when one is killed. What it does not do is left to the parent: to say why the run
ended, as the last line; to end workers that wait outside of MPI, as those on GPUs do; and to pass a
signal to worker 0 alone, so that all save before they end.
"""

from __future__ import annotations

import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from models import environment, gpus

import utils
from utils import UserError

from . import rendezvous, scheduler, worker
from .distributed import Workers
from .scheduler import ONE_HOST, Hosts
from .worker import FOLDER, Work

# runs its arguments as a command that gets SIGTERM when the parent is killed (PR_SET_PDEATHSIG)
_EXECUTE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
os.execv(sys.argv[1], sys.argv[1:])
"""
_GRACE = 2.0  # seconds that mpiexec has to end the other workers


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
        timeout: seconds without a sign of life from a worker after which all end.
        advice: what to do after a failure of work that was under way, as the end of a sentence.

    Raises UserError where the machine does not allow it.
    """
    if scheduler.mpi_rank() is not None or scheduler.slurm_task(count) is not None:
        return worker.run(work, count, hosts, timeout, advice)
    available = environment.gpu_count()
    if available and count * hosts.count > 1:
        if count > available:
            raise UserError(
                f"--ngpus {count}, but this machine has {available}; give --ngpus {available}"
            )
        for gpu in gpus.visible()[:count]:
            if not gpu.is_supported:
                raise UserError(gpus.refusal(gpu))
        return _supervise(count, hosts, advice)
    if hosts.count > 1:
        raise UserError(
            "--world-size counts hosts with GPUs, and this one has none; several hosts of CPUs "
            "are joined by MPI: mpiexec -n N -hosts A,B python train.py ..."
        )
    environment.hide_unsupported_gpu()
    return _supervise(count, hosts, advice) if count > 1 else work(Workers())


def refuse_unsupported_gpu(count: int, hosts: int) -> None:
    """Raise UserError where several workers are wanted on GPUs that MegEngine does not run on."""
    gpu = environment.unsupported_gpu()
    if gpu is not None and count * hosts > 1:
        raise UserError(f"{gpus.refusal(gpu)}; set MGE_DEFAULT_DEVICE=cpu0 to train on the CPU")


def _supervise(count: int, hosts: Hosts, advice: str) -> int:
    """Run this command as `count` processes of MPI; returns when all have ended.

    SIGINT and SIGTERM go to worker 0, which tells the others at the next step; a second one ends
    everything at once.
    """
    with tempfile.TemporaryDirectory(prefix="workers-") as folder:
        process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                _EXECUTE,
                *mpiexec(count),
                sys.executable,
                *sys.argv,
            ],
            env=os.environ
            | {
                FOLDER: folder,
                "MPIR_CVAR_SUPPRESS_ABORT_MESSAGE": "1",
                "PYTHONUNBUFFERED": "1",  # lines appear when they are printed
            },
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C on the terminal reaches this process alone
        )
        workers = _WorkerMonitor(Path(folder), count, hosts)
        watch = threading.Thread(target=workers.watch, args=(process,), daemon=True)
        watch.start()
        received: list[int] = []

        def forward(number: int, _frame: object) -> None:
            received.append(number)
            if len(received) > 1 or not workers.tell(0, number):
                process.terminate()  # mpiexec ends the workers

        previous = {s: signal.signal(s, forward) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            explanation = _relay(process.stdout)
            status = process.wait()
            watch.join()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
            process.kill()
        if received:
            return 128 + received[0]
        if reason := workers.reason():
            utils.fail(reason)
            return max(status or 0 for status in workers.statuses()) or 1
        if None not in workers.statuses():  # another host may have had a signal
            return max(workers.statuses())
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
    cores = len(os.sched_getaffinity(0)) // count
    here = ["-rmk", "user", "-launcher", "fork"]  # not on the hosts that Slurm has given
    return [program, *here, "-n", str(count), *(["-bind-to", f"core:{cores}"] if cores else [])]


def _relay(stdout: subprocess.PIPE) -> str:
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
            print(text, end="", flush=True)
    return explanation


class _WorkerMonitor:
    """What the parent process learns about the workers from their notes and from their end."""

    def __init__(self, folder: Path, count: int, hosts: Hosts):
        self._folder, self._count, self._hosts = folder, count, hosts
        self._first: int | None = None  # rank of the first that ended unfinished

    def notes(self, rank: int) -> tuple[int, int | None, str]:
        """Return a worker's process or 0, its exit status or None, and the reason of a failure."""
        with suppress(FileNotFoundError):
            process, _, end = (self._folder / str(rank)).read_text().partition("\n")
            status, _, reason = end.partition("\n")
            return int(process), int(status) if status else None, reason
        return 0, None, ""

    def statuses(self) -> list[int | None]:
        """Return the exit status of each worker, None where it has not noted one."""
        return [self.notes(rank)[1] for rank in range(self._count)]

    def reason(self) -> str:
        """Return the reason that a worker has noted, "" where none has."""
        return next(filter(None, (self.notes(rank)[2] for rank in range(self._count))), "")

    def tell(self, rank: int, signal_number: int) -> bool:
        """Send a signal; returns False when the worker has not started or has ended."""
        process, *_ = self.notes(rank)
        with suppress(ProcessLookupError):
            if process:
                os.kill(process, signal_number)
            return bool(process)
        return False

    def watch(self, mpiexec: subprocess.Popen) -> None:
        """Note which worker ends first, and make the others end too, until mpiexec ends."""
        watched: set[int] = set()
        with selectors.DefaultSelector() as selector:
            ended_at = None
            running = True
            while running:
                running = mpiexec.poll() is None  # and once more after it has ended
                for rank in set(range(self._count)) - watched:
                    process, *_ = self.notes(rank)
                    with suppress(ProcessLookupError):
                        if process:
                            file = os.pidfd_open(process)
                            selector.register(file, selectors.EVENT_READ, rank)
                            watched.add(rank)
                for key, _ in selector.select(timeout=0.1):
                    selector.unregister(key.fileobj)
                    os.close(key.fileobj)
                    _, status, reason = self.notes(key.data)
                    if self._first is None and (status is None or reason):
                        self._first, ended_at = key.data, time.monotonic()
                        if self._hosts.count > 1:
                            address = self._hosts.address if self._hosts.number else "localhost"
                            said = reason or self.verdict()
                            rendezvous.announce_failure(address, self._hosts.port, said)
                if running and ended_at is not None and time.monotonic() > ended_at + _GRACE:
                    for rank in range(self._count):  # they wait for the one that has ended
                        self.tell(rank, signal.SIGKILL)
                    ended_at = None

    def verdict(self, explanation: str = "", advice: str = "") -> str:
        """Return a sentence about the worker that ended first without a reason."""
        how = f" ({explanation})" if explanation else ""
        if self._first is None:
            return f"the workers ended before they had begun{how}"
        rank = self._first + self._count * self._hosts.number
        return (
            f"worker {rank} ended before its work was done{how}, and so the others were ended"
            f"{advice}"
        )
