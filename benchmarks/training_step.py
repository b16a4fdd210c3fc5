"""Measure a training step; variants take turns, so that the machine's load affects all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from unittest import mock

import models
from models import cpu, environment

import megengine as mge
import megengine.optimizer
import numpy as np
from megengine.autodiff import GradManager

from training import losses, low_memory, memory, optimizer

from .own_process import own_process


@dataclass(frozen=True)
class Point:
    """A point to measure: architecture, side of the images in pixels, and batch size."""

    arch: str
    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.arch}, {self.size} px, batch {self.batch}"


@contextmanager
def _stock() -> Iterator[None]:
    """Use MegEngine's own operators and optimizer in the body of the `with` statement."""
    with cpu.using("stock"), mock.patch.object(optimizer, "SGD", megengine.optimizer.SGD):
        yield


Variants = dict[str, Callable[[], AbstractContextManager]]


def all_variants() -> Variants:
    """Return name -> context in which a step is made and run."""
    bfloat16 = {"ours, --amp": cpu.bfloat16} if cpu.has_bfloat16() else {}
    return {"stock": _stock, "ours": nullcontext, **bfloat16}


def training_step(
    point: Point, backward: Callable = low_memory.backward_at_once
) -> Callable[[], None]:
    """Return a function that runs one training step and waits for its end."""
    model = models.create(point.arch)
    model.train()
    sgd = optimizer.make("sgd", optimizer.parameter_groups(model, 1e-4), lr=1e-3)
    grad_manager = GradManager().attach(model.parameters())
    rng = np.random.default_rng(0)
    images = rng.standard_normal((point.batch, 3, point.size, point.size)).astype(np.float32)
    labels = rng.integers(0, 1000, point.batch).astype(np.int32)

    def step() -> None:
        def objective(outputs: mge.Tensor | dict) -> tuple[mge.Tensor, mge.Tensor]:
            weight = getattr(model, "auxiliary_weight", 0.0)
            return losses.classification(outputs, mge.Tensor(labels), auxiliary_weight=weight)

        loss, _ = backward(model, grad_manager, mge.Tensor(images), objective)
        sgd.step().clear_grad()
        loss.numpy()
        mge._full_sync()

    return step


def seconds_per_step(
    point: Point,
    rounds: int,
    variants: Variants,
    after_step: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Return the seconds of `rounds` steps of each variant, in turns after one warm-up step each.

    `after_step` is called after every step that is measured.
    """
    steps = {}
    for name, context in variants.items():
        with context():
            steps[name] = training_step(point)
            steps[name]()
    seconds = {name: [] for name in variants}
    for _ in range(rounds):
        for name, context in variants.items():
            with context():
                start = time.perf_counter()
                steps[name]()
                seconds[name].append(time.perf_counter() - start)
            after_step()
    return seconds


def summary(point: Point, seconds: dict[str, list[float]]) -> list[dict]:
    """Return a row per variant: median and range in seconds, images/s, speed-up over the first."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {
            **asdict(point),
            "variant": name,
            "seconds": medians[name],
            "fastest": min(times),
            "slowest": max(times),
            "images_per_second": point.batch / medians[name],
            "speedup": first / medians[name],
        }
        for name, times in seconds.items()
    ]


# ---------------------------------------------------------------- memory

MEMORY = ("usual", "low memory")


def memory_of_steps(point: Point, rounds: int) -> list[dict]:
    """Return rows of peak memory and seconds of a training step, as usual and with --low-memory.

    The two take turns in `rounds` new processes each, of 5 steps, the first of which is a warm-up.
    """
    measured = {variant: [] for variant in MEMORY}
    for _ in range(rounds):
        for variant in MEMORY:
            with own_process(f"{point.arch} at {point.size}x{point.batch}, {variant}") as call:
                measured[variant].append(call(_peak_and_seconds, point, variant))
    medians = {
        variant: [statistics.median(values) for values in zip(*pairs, strict=True)]
        for variant, pairs in measured.items()
    }
    usual_peak, usual_seconds = medians[MEMORY[0]]
    return [
        {
            **asdict(point),
            "variant": variant,
            "peak_mb": peak,
            "times_less": usual_peak / peak,
            "seconds": seconds,
            "times_longer": seconds / usual_seconds,
        }
        for variant, (peak, seconds) in medians.items()
    ]


def _peak_and_seconds(point: Point, variant: str) -> tuple[float, float]:
    backward, path = low_memory.backward_at_once, cpu.path()
    if variant == "low memory":
        backward, path = low_memory.backward, "matmul"  # as train.py does
        environment.return_freed_memory()
    seconds = []
    with cpu.using(path):
        step = training_step(point, backward)
        step()
        for _ in range(4):
            start = time.perf_counter()
            step()
            seconds.append(time.perf_counter() - start)
    return memory.peak_memory(), statistics.median(seconds)
