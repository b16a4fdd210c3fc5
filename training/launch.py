"""Starting the processes of a distributed run, and ending all of them when one fails."""

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
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from models import environment

import utils
from data import cgroup, processes
from utils import UserError

from . import mpi_environment, signals
from .distributed import MPI, NCCL, Workers

Work = Callable[[Workers], int]  # what a process does; returns its exit status

_FOLDER = signals.SUPERVISED  # where each CPU worker notes its process, and how it ended
_DONE = "done"
# runs its arguments as a command that is killed with its parent (PR_SET_PDEATHSIG)
_EXECUTE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
os.execv(sys.argv[1], sys.argv[1:])
"""
_GRACE = 2.0  # seconds that mpiexec has to end the other workers


def run(
    work: Work,
    count: int,
    nodes: int = 1,
    node: int = 0,
    address: str = "localhost",
    port: int = 23456,
) -> int:
    """Do `work` in `count` processes on each of `nodes` hosts; returns the exit status.

    - Within an mpiexec of the user's own, this process joins the others there.
    - On GPUs there is one process per GPU, started by MegEngine's launcher; this host is number
      `node`, and number 0 listens at `address` and `port`. This has never been run on a GPU.
    - On CPUs this very command is started `count` times more, by mpiexec.

    Raises UserError where the machine does not allow it.
    """
    if mpi_environment.rank() is not None:
        return _as_worker(work, count)
    gpus = environment.gpu_count()
    if gpus and count * nodes > 1:
        if count > gpus:
            raise UserError(f"--ngpus {count}, but this machine has {gpus}; give --ngpus {gpus}")
        return _on_gpus(work, count, nodes, node, address, port)
    if nodes > 1:
        raise UserError(
            "--world-size counts hosts with GPUs, and this one has none; several hosts of CPUs "
            "are joined by MPI: mpiexec -n N -hosts A,B python train.py ..."
        )
    return _on_cpus(count) if count > 1 else work(Workers())


def _on_gpus(work: Work, count: int, nodes: int, node: int, address: str, port: int) -> int:
    import megengine.distributed as dist

    launch = dist.launcher(
        _on_gpu,
        n_gpus=count,
        world_size=count * nodes,
        rank_start=count * node,
        master_ip=address,
        port=port,
    )
    launch(work)
    return 0


def _on_gpu(work: Work) -> None:
    status = work(NCCL())
    if status:
        sys.exit(status)  # the launcher ends the other processes


# ---------------------------------------------------------------- CPUs: the parent


def _on_cpus(count: int) -> int:
    """Run this command as `count` processes of MPI; returns when all have ended.

    Signals go to worker 0, which tells the others at the next step; see signals.StopSignal. When
    this process is killed, all are.
    """
    with tempfile.TemporaryDirectory(prefix="workers-") as folder, signals.StopSignal() as stop:
        command = [sys.executable, "-I", "-c", _EXECUTE, *mpiexec(count), sys.executable, *sys.argv]
        with processes.signals_held_back():
            process = subprocess.Popen(
                command,
                env=os.environ
                | {
                    _FOLDER: folder,
                    "MPIR_CVAR_SUPPRESS_ABORT_MESSAGE": "1",
                    "PYTHONUNBUFFERED": "1",  # lines appear when they are printed
                },
                stdin=subprocess.DEVNULL,  # mpiexec would read what is meant for others
                stdout=subprocess.PIPE,
                start_new_session=True,  # so that Ctrl-C on the terminal reaches this process alone
            )
        workers = _WorkerMonitor(Path(folder), count, stop)
        watch = threading.Thread(target=workers.watch, args=(process,), daemon=True)
        watch.start()
        try:
            explanation = _relay(process.stdout)
            status = process.wait()
            watch.join()
        finally:
            process.kill()
        if workers.all_done():
            return 128 + stop.number if status and stop.number else status
        utils.fail(workers.verdict(explanation or f"exit status {status}"))
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
    return [program, "-n", str(count), *(["-bind-to", f"core:{cores}"] if cores else [])]


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
            try:
                print(text, end="", flush=True)
            except OSError:  # nobody reads it: the workers are told to stop
                signal.raise_signal(signal.SIGPIPE)
    return explanation


class _WorkerMonitor:
    """What the parent process learns about the workers from their notes and from their end."""

    def __init__(self, folder: Path, count: int, stop: signals.StopSignal):
        self._folder, self._count, self._stop = folder, count, stop
        self._kills = cgroup.kills()
        self._first: int | None = None  # rank of the first that ended unfinished

    def notes(self, rank: int) -> list[str]:
        with suppress(FileNotFoundError):
            return (self._folder / str(rank)).read_text().split("\n", 1)
        return []

    def all_done(self) -> bool:
        return all(self.notes(rank)[1:] == [_DONE] for rank in range(self._count))

    def tell(self, rank: int, signal_number: int) -> bool:
        """Send a signal; returns False when the worker has not started or has ended."""
        with suppress(IndexError, ProcessLookupError):
            os.kill(int(self.notes(rank)[0]), signal_number)
            return True
        return False

    def watch(self, mpiexec: subprocess.Popen) -> None:
        """Note which worker ends first, and make the others end too, until mpiexec ends.

        Signals are passed on to worker 0 as soon as it runs.
        """
        watched: set[int] = set()
        told = False
        with selectors.DefaultSelector() as selector:
            ended_at = None
            running = True
            while running:
                running = mpiexec.poll() is None  # and once more after it has ended
                if self._stop.number is not None and not told:
                    told = self.tell(0, self._stop.number)
                if self._stop.save and self.tell(0, signals.SAVING):
                    self._stop.save = False
                for rank in set(range(self._count)) - watched:
                    with suppress(IndexError, ProcessLookupError):
                        pid = int(self.notes(rank)[0])
                        selector.register(os.pidfd_open(pid), selectors.EVENT_READ, rank)
                        watched.add(rank)
                for key, _ in selector.select(timeout=0.1):
                    selector.unregister(key.fileobj)
                    os.close(key.fileobj)
                    if self._first is None and self.notes(key.data)[1:] != [_DONE]:
                        self._first, ended_at = key.data, time.monotonic()
                if running and ended_at is not None and time.monotonic() > ended_at + _GRACE:
                    for rank in range(self._count):  # they wait for the one that has ended
                        self.tell(rank, signal.SIGKILL)
                    ended_at = None

    def verdict(self, explanation: str) -> str:
        """Return one sentence about the worker that ended first."""
        for rank in range(self._count):
            reason = self.notes(rank)[1:]
            if reason not in ([], [_DONE]):
                return f"worker {rank}: {reason[0]}"
        if self._first is None:
            return f"the workers ended before they had begun ({explanation})"
        why = cgroup.reason(self._kills) if explanation == "killed" else ""
        return (
            f"worker {self._first} ended before its work was done ({explanation}), and so the "
            f"others were ended{why and '; it ' + why}; go on from the last checkpoint with "
            "--resume auto"
        )


# ---------------------------------------------------------------- CPUs: a worker


def _as_worker(work: Work, count: int) -> int:
    """Do the work as a worker; when it fails, note the reason and end all workers.

    Raises UserError when MPI is not the one that the environment is of.
    """
    processes.release_signals()
    try:
        mpi_environment.check_connection()
        workers = MPI()
        mpi_environment.check(workers.size, count)
    except UserError:
        if mpi_environment.rank():
            sys.exit(2)  # one process says it
        raise
    note = None
    if _FOLDER in os.environ:
        note = Path(os.environ[_FOLDER]) / str(workers.rank)
        _write(note, f"{os.getpid()}")
    try:
        status = work(workers)
        workers.gather([status])  # nobody leaves, and so ends the others, while one still works
    except BaseException as error:
        reason, status = str(error), 2
        if not isinstance(error, UserError):
            traceback.print_exc()
            reason, status = f"{type(error).__name__}: {error}".partition("\n")[0], 1
        if note is not None:
            _write(note, f"{os.getpid()}\n{reason}")
        else:
            utils.fail(f"worker {workers.rank}: {reason}")
        sys.stdout.flush()
        sys.stderr.flush()
        workers.abort(status)
        os._exit(status)  # as MPI's abort may return before mpiexec ends this process
    if note is not None:
        _write(note, f"{os.getpid()}\n{_DONE}")
    return status


def _write(note: Path, text: str) -> None:
    new = note.with_suffix(".new")
    new.write_text(text)
    new.replace(note)
