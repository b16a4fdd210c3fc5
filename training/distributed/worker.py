"""One of several worker processes: how it joins the others, and how its failure ends them all."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import sys
import termios
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from models import environment, gpus

import utils
from data import processes
from utils import UserError

from .. import signals
from . import cluster, mpi_environment, rendezvous, shared_memory
from .cluster import ONE_HOST, Hosts
from .heartbeat import Heartbeat
from .process_group import MPI, NCCL, Workers
from .worker_monitor import end_file

Work = Callable[[Workers], int]  # what a process does; returns its exit status

FOLDER = signals.SUPERVISED  # where each worker of this host notes its process and its end
MEETING = 600.0  # seconds within which all workers must have come: hosts are started one by one
LINGER = 2.0  # seconds that the server outlives worker 0, for other hosts to learn the reason


def run(work: Work, count: int, hosts: Hosts, timeout: float, advice: str) -> int:
    """Do the work as one of several workers; returns the exit status. See launch.run."""
    processes.release_signals()
    this = _Worker(hosts, timeout, advice)
    try:
        this.workers = workers = this.join(count)
        environment.hide_unused_gpus(say=workers.rank == 0)
        status = work(workers)
        workers.gather([status])  # nobody leaves, and so ends the others, while one still works
        this.leave(status)
    except UserError as error:
        if this.name is None and cluster.mpi_rank():
            time.sleep(0.5)
            os._exit(2)  # the environment is wrong in all alike, and the first says so for all
        if this.workers.rank:
            time.sleep(0.5)  # where all fail alike, as for a wrong flag, worker 0 says so for all
        this.fail(f"{this.name}: {error}" if this.name else str(error))
    except KeyboardInterrupt:  # in work that has nothing to save
        this.fail(f"{this.name or 'a worker'}: stopped by SIGINT", 128 + signal.SIGINT)
    except BaseException as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        this.fail(f"{this.name or 'a worker'}: {reason}", 1)
    return status


def _share_cores(sharers: int) -> None:
    """Let this process compute with its share of the cores that `sharers` workers run on."""
    if sharers > 1:
        threads = max(1, len(os.sched_getaffinity(0)) // sharers)
        os.environ.setdefault("OMP_NUM_THREADS", str(threads))


class _Worker:
    """This process among the workers.

    Attributes:
        name: what messages call it, such as "worker 1 on HOST"; None until MPI has numbered it.
        workers: the group, once it has been joined.
    """

    def __init__(self, hosts: Hosts, timeout: float, advice: str):
        self.name: str | None = None
        self.workers = Workers()
        self._hosts, self._timeout, self._advice = hosts, timeout, advice
        self._mpi: MPI | None = None
        self._note: Path | None = None
        self._address: tuple[str, int] | None = None  # of a server beyond this mpiexec
        self._server: rendezvous.Server | None = None  # beside worker 0
        self._heartbeat: Heartbeat | rendezvous.Watch | None = None
        self._ending = threading.Lock()

    def join(self, count: int) -> Workers:
        """Return the group of all workers once they have met; `count` is what --ngpus says.

        Raises UserError where the flags or the environment contradict mpiexec or Slurm, or the
        others do not come.
        """
        task = cluster.slurm_task()
        if task is not None:
            return self._join_slurm(task, count)
        shared_memory.remove_left_over()
        mpi_environment.check_connection()
        workers = MPI()
        _share_cores(workers.sharers)
        mpi_environment.check(workers.size, count)
        self._mpi = workers
        self.name = workers.name(workers.rank)
        if FOLDER in os.environ:
            self._note = Path(os.environ[FOLDER]) / str(workers.rank)
            self._write("")
            # never closed but by the end of this process
            os.open(end_file(self._note.parent, workers.rank), os.O_WRONLY)
        else:
            mpi_environment.check_flags(count, self._hosts, workers)
        if environment.gpu_count() == 0 or workers.size * self._hosts.count == 1:
            if workers.size > 1:
                self._heartbeat = Heartbeat(workers, self._timeout, self.fail)
            return workers
        if self._note is not None and self._hosts.count > 1:  # an mpiexec on every host
            return self._join_launched(
                rank=workers.size * self._hosts.number + workers.rank,
                size=workers.size * self._hosts.count,
                device=workers.local_rank,
                address=self._hosts.address,
                port=self._hosts.port,
            )
        port = 0  # until worker 0 says at which its server listens
        if workers.rank == 0:
            self._server = rendezvous.Server()
            port = self._server.port
        port = workers.agree(port)
        address = "localhost"
        if len(set(workers.hosts)) > 1:
            address = self._address_or(workers.hosts[0])
        return self._join_gpus(
            workers.rank, workers.size, workers.local_rank, address, port, workers.hosts
        )

    def _join_slurm(self, task: cluster.Task, count: int) -> Workers:
        self.name = f"worker {task.rank} on {socket.gethostname()}"
        if count > task.size or self._hosts.count > 1:
            raise UserError(
                f"Slurm has started the {task.size} workers, which --ngpus {count} and "
                f"--world-size {self._hosts.count} contradict; leave both out"
            )
        if environment.gpu_count() == 0:
            raise UserError(
                f"Slurm has started {task.size} tasks without MPI, which workers on CPUs need; "
                "use srun --mpi=pmi2, or mpiexec in place of srun"
            )
        address = self._address_or(task.address)
        return self._join_launched(task.rank, task.size, task.local_rank, address, self._hosts.port)

    def _address_or(self, usual: str) -> str:
        """Return what --dist-addr says, or `usual` where it is not given."""
        return usual if self._hosts.address == ONE_HOST.address else self._hosts.address

    def _join_launched(self, rank: int, size: int, device: int, address: str, port: int) -> NCCL:
        """Join workers that no common mpiexec has started; `port` is known to all."""
        self.name = f"worker {rank} on {socket.gethostname()}"
        if rank == 0:
            self._server = rendezvous.Server(port, LINGER)
        self._address = address, port
        return self._join_gpus(rank, size, device, address, port)

    def _join_gpus(
        self, rank: int, size: int, device: int, address: str, port: int, hosts: Sequence[str] = ()
    ) -> NCCL:
        devices, device = gpus.visible(), cluster.gpu(device)
        if device >= environment.gpu_count():
            raise UserError(
                f"{socket.gethostname()} has {environment.gpu_count()} GPUs, and this is worker "
                f"number {device + 1} on it; start one for each GPU"
            )
        if device < len(devices) and not devices[device].is_supported:
            raise UserError(gpus.refusal(devices[device]) + gpus.OTHER_DEVICES)
        rendezvous.await_server(address, port, MEETING)
        reason = (
            f"not all of the {size} workers came to {address}:{port} within {MEETING:g} s; start "
            "the same command on every host"
        )
        absent = threading.Timer(MEETING, self.fail, [reason])
        absent.daemon = True
        absent.start()
        workers = NCCL(rank, size, device, address, port, hosts)
        absent.cancel()
        self._heartbeat = rendezvous.Watch(address, port, rank, size, self._timeout, self.fail)
        return workers

    def leave(self, status: int) -> None:
        """Part from the others, who have all done their work."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
        self._write(f"{status}\n")

    def fail(self, reason: str, status: int = 2) -> NoReturn:
        """End all workers for a reason, which becomes the last line; may be called in any thread.

        MPI's abort discards what mpiexec has not read yet, so the pipes are waited for.
        """
        self._ending.acquire()  # and never released: there is one end, and one reason
        line = reason + (self._advice if self.workers.under_way else "")
        if self._note is not None:
            self._write(f"{status}\n{line}")
        else:
            time.sleep(0.5)  # the others print what they have, up to where they wait for this one
            utils.fail(line)
        if self._address is not None:
            rendezvous.announce_failure(*self._address, reason)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody reads it
                stream.flush()
            _await_reader(stream.fileno())
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)
        os.dup2(silent, 2)
        if self._mpi is not None:
            late = threading.Timer(2, os._exit, [status])  # for an mpiexec that is out of reach
            late.daemon = True
            late.start()
            # MPI's abort calls exit, whose handlers would stop MegEngine while it still computes
            libc = ctypes.CDLL(None)
            libc.on_exit(libc._exit, None)
            self._mpi.abort(status)
        os._exit(status)  # as MPI's abort may return before mpiexec ends this process

    def _write(self, end: str) -> None:
        if self._note is not None:
            new = self._note.with_suffix(".new")
            new.write_text(f"{os.getpid()}\n{end}")
            new.replace(self._note)


def _await_reader(file: int) -> None:
    """Wait until a pipe has been read empty, and passed on to mpiexec; 2 seconds at most."""
    end = time.monotonic() + 2
    try:
        while struct.unpack("i", fcntl.ioctl(file, termios.FIONREAD, b"1234"))[0]:
            if time.monotonic() > end:
                return
            time.sleep(0.01)
        time.sleep(0.1)
    except OSError:  # no pipe
        return
