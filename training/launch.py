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
from utils import UserError

from .distributed import MPI, NCCL, Workers, rank_in_environment

Work = Callable[[Workers], int]  # what a process does; returns its exit status

_FOLDER = "WORKERS_FOLDER"  # where each CPU worker notes its process, and how it ended
_DONE = "done"
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
    if rank_in_environment() is not None:
        return _as_worker(work)
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
                _FOLDER: folder,
                "MPIR_CVAR_SUPPRESS_ABORT_MESSAGE": "1",
                "PYTHONUNBUFFERED": "1",  # lines appear when they are printed
            },
            stdout=subprocess.PIPE,
            start_new_session=True,  # so that Ctrl-C on the terminal reaches this process alone
        )
        workers = _WorkerMonitor(Path(folder), count)
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
        if status == 0 and workers.all_done():
            return 0
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
            print(text, end="", flush=True)
    return explanation


class _WorkerMonitor:
    """What the parent process learns about the workers from their notes and from their end."""

    def __init__(self, folder: Path, count: int):
        self._folder, self._count = folder, count
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
        """Note which worker ends first, and make the others end too, until mpiexec ends."""
        watched: set[int] = set()
        with selectors.DefaultSelector() as selector:
            ended_at = None
            running = True
            while running:
                running = mpiexec.poll() is None  # and once more after it has ended
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
        return (
            f"worker {self._first} ended before its work was done ({explanation}), and so the "
            "others were ended; go on from the last checkpoint with --resume auto"
        )


# ---------------------------------------------------------------- CPUs: a worker


def _as_worker(work: Work) -> int:
    """Do the work as a worker; when it fails, note the reason and end all workers."""
    workers = MPI()
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
