"""The processes that train one network together, and what they exchange.

On CPUs MPI joins them, because MegEngine has no collectives for CPUs; on GPUs MegEngine does, over
NCCL. launch.py starts them. One process alone is a group of size 1.
"""

from __future__ import annotations

import os
import socket
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeVar

from models import environment

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np

if TYPE_CHECKING:
    import mpi4py.MPI

T = TypeVar("T")

_BUCKET = 4 << 20  # numbers in one all-reduce: a few large messages instead of hundreds of small


class Workers:
    """A process that trains alone, and the interface of those that train together.

    Attributes:
        rank: number of this process, 0 to size - 1. Rank 0 writes files and prints.
        size: number of processes.
        local_size: number of processes on this host.
        hosts: name of the host of each process; empty where that is not known.
        under_way: whether training has begun, so that a failed run can be gone on with.
    """

    rank = 0
    size = 1
    local_size = 1
    hosts: Sequence[str] = ()
    under_way = False

    def name(self, rank: int) -> str:
        """Return "worker 1", or "worker 1 on HOST" where there are several hosts."""
        return f"worker {rank}" + (f" on {self.hosts[rank]}" if len(set(self.hosts)) > 1 else "")

    def sum(self, x: mge.Tensor) -> mge.Tensor:
        """Return the sum of `x` over all processes; every one gets the same bits."""
        return x

    def mean(self, x: mge.Tensor) -> mge.Tensor:
        """Return the mean of `x` over all processes; every one gets the same bits."""
        return self.sum(x) * (1 / self.size)

    def gather(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return a few numbers of every process, float64 [size, len(values)], the same in all."""
        return np.array([values], np.float64)

    def broadcast(self, tensors: Sequence[mge.Tensor]) -> None:
        """Give the tensors the values that they have in rank 0."""

    def broadcast_bytes(self, content: bytes | None) -> bytes:
        """Return the `content` of rank 0, in all processes."""
        sizes = self.gather(divmod(len(content or b""), 1 << 20))  # exact as float32 too
        length = int(sizes[0] @ (1 << 20, 1))
        padded = np.zeros(-(-length // 4), np.int32)
        if self.rank == 0:
            padded.view(np.uint8)[:length] = np.frombuffer(content or b"", np.uint8)
        tensor = mge.Tensor(padded)
        self.broadcast([tensor])
        return tensor.numpy().tobytes()[:length]

    def average(self, tensors: Sequence[mge.Tensor]) -> None:
        """Replace the values of the tensors by their mean over all processes."""
        if self.size == 1:
            return
        for bucket in _buckets(tensors):
            flat = F.concat([tensor.reshape(-1) for tensor in bucket])  # [numbers in the bucket]
            ends = np.cumsum([tensor.size for tensor in bucket])[:-1].tolist()
            parts = F.split(self.mean(flat), ends)
            for tensor, part in zip(bucket, parts, strict=True):
                tensor._reset(part.reshape(tensor.shape))


class MPI(Workers):
    """The processes that mpiexec has started, on the CPUs of one host or several.

    Attributes:
        sharers: number of processes, this one included, that may run on this one's cores.
    """

    def __init__(self) -> None:
        # the reason of a failure is to be the last line
        os.environ.setdefault("MPIR_CVAR_SUPPRESS_ABORT_MESSAGE", "1")
        with warnings.catch_warnings():  # mpi_environment.check says it
            warnings.filterwarnings("ignore", "suspicious MPI execution environment")
            import mpi4py.MPI

        self._comm = mpi4py.MPI.COMM_WORLD
        self._in_place = mpi4py.MPI.IN_PLACE
        self.rank, self.size = self._comm.rank, self._comm.size
        local = self._comm.Split_type(mpi4py.MPI.COMM_TYPE_SHARED)
        self.local_rank, self.local_size = local.rank, local.size
        cores = os.sched_getaffinity(0)
        self.sharers = sum(bool(cores & others) for others in local.allgather(cores))
        self.hosts = self._comm.allgather(socket.gethostname())
        self._received: dict[int, np.ndarray] = {}  # by size; new memory would cost more than MPI

    def sum(self, x: mge.Tensor) -> mge.Tensor:
        """Return the sum of `x` over all processes; every one gets the same bits."""
        values = np.array(x.numpy())  # a copy, as MPI writes into it
        _wait(self._comm.Iallreduce(self._in_place, values))
        return mge.Tensor(values)

    def mean(self, x: mge.Tensor) -> mge.Tensor:
        """Return the mean of `x`, float32 [N], over all processes; every one gets the same bits."""
        if x.size not in self._received:
            self._received[x.size] = np.empty(x.size, np.float32)
        received = self._received[x.size]
        _wait(self._comm.Iallreduce(x.numpy(), received))
        received *= 1 / self.size
        return mge.Tensor(received)

    def gather(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return a few numbers of every process, float64 [size, len(values)], the same in all."""
        all_values = np.empty((self.size, len(values)), np.float64)
        _wait(self._comm.Iallgather(np.array(values, np.float64), all_values))
        return all_values

    def broadcast(self, tensors: Sequence[mge.Tensor]) -> None:
        """Give the tensors the values that they have in rank 0."""
        for tensor in tensors:
            values = np.array(tensor.numpy())
            _wait(self._comm.Ibcast(values))
            tensor._reset(mge.Tensor(values))

    def agree(self, value: T) -> T:
        """Return the `value` of worker 0, any picklable object, in all workers."""
        return self._comm.bcast(value)

    def duplicate(self) -> mpi4py.MPI.Comm:
        """Return a communicator for messages apart from these; all must call it."""
        return self._comm.Dup()

    def abort(self, status: int) -> None:
        """End all processes at once."""
        self._comm.Abort(status)


def _wait(request: mpi4py.MPI.Request) -> None:
    """Wait for an MPI operation, asleep.

    MPI's own waiting spins, and so takes the processor from the worker that is waited for whenever
    there are more workers than cores.
    """
    environment.set_timer_slack(5e-5)
    while not request.Test():
        time.sleep(5e-5)


class NCCL(Workers):
    """The processes of MegEngine's process group, one per GPU. Not tested on GPUs.

    Args:
        rank, size: number of this process and number of all.
        device: number of its GPU on this host.
        address, port: those of MegEngine's server; see rendezvous.Server.
        hosts: see Workers.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        device: int,
        address: str,
        port: int,
        hosts: Sequence[str] = (),
    ):
        import megengine.distributed as dist

        os.environ["NCCL_LAUNCH_MODE"] = "PARALLEL"  # as MegEngine's launcher does, for deadlocks
        dist.init_process_group(address, port, size, rank, device, "nccl")
        self._ops = F.distributed
        self.rank, self.size, self.hosts = rank, size, hosts

    def sum(self, x: mge.Tensor) -> mge.Tensor:
        """Return the sum of `x` over all processes; every one gets the same bits."""
        return self._ops.all_reduce_sum(x)

    def gather(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Return a few numbers of every process, float64 [size, len(values)], the same in all.

        They are sent as float32, which is exact for whole numbers below 2^24.
        """
        row = mge.Tensor(np.array([values], np.float32))
        return self._ops.all_gather(row).numpy().astype(np.float64)

    def broadcast(self, tensors: Sequence[mge.Tensor]) -> None:
        """Give the tensors the values that they have in rank 0."""
        for tensor in tensors:
            tensor._reset(self._ops.broadcast(tensor))


def _buckets(tensors: Sequence[mge.Tensor]) -> Iterator[list[mge.Tensor]]:
    bucket, numbers = [], 0
    for tensor in tensors:
        bucket.append(tensor)
        numbers += tensor.size
        if numbers >= _BUCKET:
            yield bucket
            bucket, numbers = [], 0
    if bucket:
        yield bucket


def synchronize_batch_norms(model: M.Module, workers: Workers) -> None:
    """Make the batch norms of `model` take their statistics over the images of all processes.

    Source: as in Peng et al., MegDet, CVPR 2018.
    """
    if workers.size == 1:
        return

    # a function, because with a method of `workers` a copy of the model would copy these too
    def all_reduce(x: mge.Tensor) -> mge.Tensor:
        return workers.sum(x)

    for module in model.modules():
        if hasattr(module, "all_reduce"):
            module.all_reduce = all_reduce
