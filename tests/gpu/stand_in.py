"""Run a command down its GPU path without a GPU: `stand_in.py COMMAND.py FLAGS...`.

Two things stand in for what is missing: each GPU is one of MegEngine's CPU devices, and the three
collectives go through files. All else is the real thing: the processes, MegEngine's server and its
process group. RepVGGA0 is made small, as only the paths are of interest.

Variables, beside PYTHONPATH, the checkout, and MGE_DEFAULT_DEVICE, cpu0:
    STAND_IN_FOLDER: where the collectives' files go; the same for all hosts.
    STAND_IN_GPUS: number of GPUs of this host (default: 2).
    STAND_IN_RAISE: "RANK STEP" of a worker that raises a ValueError.
"""

import functools
import importlib
import os
import sys
import time
import uuid
from contextlib import nullcontext
from pathlib import Path

import models
from models import environment
from models.repvgg import RepVGG

import megengine as mge
import megengine.distributed as dist
import megengine.distributed.group as group
import megengine.functional as F
import numpy as np

import utils
from training import gpu, loop, mixed_precision

_init_process_group = dist.init_process_group
_exchanges = 0


def main() -> int | None:
    os.environ["REPARAM_CPU"] = "matmul"  # "fast" is for the first of MegEngine's CPU devices alone
    environment.gpu_count = lambda: int(os.environ.get("STAND_IN_GPUS", "2"))
    group._devices.add("cpu")
    dist.init_process_group = init_process_group
    F.distributed.all_reduce_sum = lambda x: mge.Tensor(functools.reduce(np.add, exchange(x)))
    F.distributed.all_gather = lambda x: mge.Tensor(np.concatenate(exchange(x)))
    F.distributed.broadcast = lambda x: mge.Tensor(exchange(x)[0])
    gpu.check = lambda *_: None
    gpu.enable_dtr = lambda *_: None
    mixed_precision.on_cpu = lambda: False
    mixed_precision.autocast = lambda enabled: nullcontext()
    config = {"depths": (1, 2, 4, 1), "width": (0.25, 0.125, 0.125, 0.125)}
    models.registry._REGISTRY["RepVGGA0"] = RepVGG, config
    loop.Trainer.train_step = failing(loop.Trainer.train_step)
    command = importlib.import_module(Path(sys.argv[1]).stem)
    return command.main(sys.argv[2:])


def init_process_group(address, port, size, rank, device, backend):
    assert backend == "nccl"
    _init_process_group(address, port, size, rank, device, "auto", "cpu")
    if rank == 0:
        dist.get_client().user_set("exchange", uuid.uuid4().hex)
    dist.group_barrier()  # as with NCCL


@functools.cache
def folder():
    path = Path(os.environ["STAND_IN_FOLDER"]) / dist.get_client().user_get("exchange")
    path.mkdir(parents=True, exist_ok=True)
    return path


def exchange(x):
    """Arrays of all workers, in their order."""
    global _exchanges
    _exchanges += 1
    number, rank = _exchanges, dist.get_rank()
    new = folder() / f".{number}-{rank}"
    with open(new, "wb") as file:
        np.save(file, x.numpy())
    new.rename(folder() / f"{number}-{rank}.npy")
    arrays = []
    for other in range(dist.get_world_size()):
        file = folder() / f"{number}-{other}.npy"
        while not file.exists():
            time.sleep(1e-3)
        arrays.append(np.load(file))
    (folder() / f"{number - 2}-{rank}.npy").unlink(missing_ok=True)  # all have read it
    return arrays


def failing(train_step):
    def step(trainer, *arguments):
        if os.environ.get("STAND_IN_RAISE") == f"{trainer.workers.rank} {trainer.step}":
            raise ValueError("a planted error")
        train_step(trainer, *arguments)

    return step


if __name__ == "__main__":
    utils.run(main)
