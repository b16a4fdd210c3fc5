"""Measure a training step of this project's and of PyTorch's eager mode with timm's same network.

Each is a process of its own (training_worker.py), on the same cores; they take turns.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from benchmarks.inference.candidates import timm_name
from benchmarks.turns import Process
from utils import UserError

if TYPE_CHECKING:
    from .training_step import Point

VARIANTS = ("PyTorch", "ours")  # the first is what the other is compared with
# The instructions of a processor that has AVX2 and nothing newer: PyTorch's own kernels, oneDNN's
# in PyTorch and here, and what numba compiles.
AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "NUMBA_CPU_NAME": "haswell",
}


def check(point: Point, threads: int) -> None:
    """Raise UserError for what `measure` cannot measure on this machine.

    PyTorch and timm must be installed, timm must have such a network, and this process must be
    allowed to use so many cores.
    """
    if missing := [name for name in ("torch", "timm") if find_spec(name) is None]:
        raise UserError(
            f"--against pytorch needs {' and '.join(missing)}, which this project does not "
            "require; type: pip install torch timm"
        )
    if timm_name(point.arch) is None:
        raise UserError(
            f"timm has no {point.arch}; give an architecture that convert_pretrained_weight.py "
            "--list shows with timm"
        )
    cores = os.sched_getaffinity(0)
    if threads > len(cores):
        raise UserError(
            f"--threads {threads} is more than the {len(cores)} cores that this process may use; "
            "give fewer"
        )


def measure(
    point: Point,
    threads: int,
    rounds: int,
    avx2: bool = False,
    after_step: Callable[[], object] = lambda: None,
) -> list[dict[str, Any]]:
    """Return a row for each variant: medians over `rounds` steps, with the ratio to PyTorch.

    The ratio is the median of the ratios of the steps that followed each other. Raises UserError
    where `check` does, and when a process fails.
    """
    check(point, threads)
    timm = timm_name(point.arch)
    cores = sorted(os.sched_getaffinity(0))
    variables = {
        "OMP_NUM_THREADS": str(threads),
        "REPARAM_CORES": ",".join(map(str, cores[:threads])),
        **(AVX2 if avx2 else {}),
    }
    networks = dict(zip(VARIANTS, (timm, point.arch), strict=True))
    numbers = list(map(str, (point.size, point.batch, threads)))
    seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
    with ExitStack() as stack:
        processes = {}
        for variant in VARIANTS:
            processes[variant] = stack.enter_context(
                Process(
                    variant,
                    ["benchmarks.training_worker", variant, networks[variant], *numbers],
                    variables,
                    "repair it first",
                )
            )
            processes[variant].answer()  # one warms up after the other
        for _ in range(rounds):
            for variant, process in processes.items():
                seconds[variant].append(process.turn()["seconds"])
                after_step()
        peaks = {variant: process.peak_memory() for variant, process in processes.items()}
    return [row(point, threads, variant, seconds, peaks[variant]) for variant in VARIANTS]


def row(
    point: Point, threads: int, variant: str, seconds: dict[str, list[float]], peak: float
) -> dict[str, Any]:
    """Return the row of a variant."""
    times = seconds[variant]
    ratios = [theirs / own for theirs, own in zip(seconds["PyTorch"], times, strict=True)]
    median = statistics.median(times)
    return {
        "arch": point.arch,
        "size": point.size,
        "batch": point.batch,
        "threads": threads,
        "variant": variant,
        "seconds": median,
        "fastest": min(times),
        "slowest": max(times),
        "images_per_second": point.batch / median,
        "times_pytorch": statistics.median(ratios),
        "peak_mb": peak,
    }
