"""Measure the training loop with one worker and with several, in turns and in new processes.

`python -m benchmarks.workers ARCH SIZE BATCH STEPS FOLDER` runs one of the workers, which writes
into FOLDER why it failed: what it prints last may be lost with mpiexec, which forwards it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import models
from models import environment

import numpy as np

import utils
from data.augment import Augmentation
from data.datasets import Dataset
from data.loader import Loader
from data.transforms import Preprocessing
from training import find_lr
from training.distributed import cluster, launch
from training.distributed.process_group import MPI, Workers
from training.loop import Trainer
from training.run_folder import RunFolder
from training.settings import Settings
from training.trainer_inputs import Data, Network, Run
from utils import UserError

from .training_step import Point


def seconds_per_step(point: Point, count: int, steps: int) -> list[float]:
    """Return the seconds of `steps` steps, after two warm-up steps, with `count` workers.

    Raises UserError when a batch has no image for each worker, or when a worker fails.
    """
    if point.batch < count:
        raise UserError(
            f"--point {point.size}x{point.batch} has fewer images than the {count} workers share; "
            "give a larger batch or fewer --workers"
        )
    with tempfile.TemporaryDirectory() as folder:
        arguments = (point.arch, point.size, point.batch, steps + 2, folder)
        command = [*utils.module_command(__name__), *map(str, arguments)]
        if count > 1:
            command = [*launch.mpiexec(count), *command]
        process = subprocess.run(
            command, cwd=utils.ROOT, stdout=subprocess.PIPE, text=True, check=False
        )
        reasons = [file.read_text() for file in sorted(Path(folder).iterdir())]
    if process.returncode:
        reason = next(filter(None, reasons), "a worker was killed, probably for lack of memory")
        raise UserError(f"a training of {point.arch} with {count} workers failed: {reason}")
    return json.loads(process.stdout)[2:]


def measure(point: Point, counts: list[int], rounds: int, steps: int = 4) -> list[dict]:
    """Return a row per number of workers, with medians over the steps of all rounds."""
    seconds = {count: [] for count in counts}
    for _ in range(rounds):
        for count in counts:
            seconds[count] += seconds_per_step(point, count, steps)
    medians = {count: statistics.median(values) for count, values in seconds.items()}
    return [
        {
            **asdict(point),
            "workers": count,
            "seconds": medians[count],
            "fastest": min(seconds[count]),
            "slowest": max(seconds[count]),
            "images_per_second": point.batch / medians[count],
            "speedup": medians[counts[0]] / medians[count],
        }
        for count in counts
    ]


def work(point: Point, steps: int, workers: Workers) -> list[float]:
    """Return the seconds of each of `steps` steps, as one of `workers`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (point.batch, point.size, point.size, 3), np.uint8)
    labels = rng.integers(0, 10, point.batch).astype(np.int32)
    noise = Dataset("noise", images, labels, list("0123456789"), Augmentation())
    loader = Loader(
        noise, Preprocessing(size=point.size), point.batch, 1, rank=workers.rank, world=workers.size
    )
    trainer = Trainer(
        Network(models.create(point.arch, 10)),
        Data(loader, loader),
        Settings(epochs=steps, batch_size=point.batch, lr=1e-3),
        Run(RunFolder(Path(), silent=True), workers),
    )
    times = [time.perf_counter()]
    for _ in find_lr.losses_at(trainer, [1e-3] * steps):
        times.append(time.perf_counter())
    return np.diff(times).tolist()


def main() -> None:
    """Run one of the workers; if it fails, all end."""
    environment.tune_for_computing()
    arch, size, batch, steps, folder = sys.argv[1:]
    workers = Workers() if cluster.mpi_rank() is None else MPI()
    try:
        seconds = work(Point(arch, int(size), int(batch)), int(steps), workers)
    except Exception as error:
        reason = f"worker {workers.rank}: {type(error).__name__}: {error}"
        Path(folder, str(workers.rank)).write_text(reason)
        if isinstance(workers, MPI):  # the others would wait for it
            workers.abort(2)
        sys.exit(2)
    if workers.rank == 0:
        print(json.dumps(seconds))


if __name__ == "__main__":
    main()
