"""Timing a training step, with variants interleaved so that they share the machine's moods."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from unittest import mock

import megengine as mge
import megengine.optimizer
import numpy as np
from megengine.autodiff import GradManager

import models
from models import cpu

from . import losses, optimizer


@dataclass(frozen=True)
class Point:
    """What is timed: architecture, side of the input in pixels, images a step."""

    arch: str
    size: int
    batch: int

    def __str__(self) -> str:
        return f"{self.arch}, {self.size} px, batch {self.batch}"


@contextmanager
def _stock() -> Iterator[None]:
    """MegEngine's own operators and optimizer."""
    with cpu.disabled(), mock.patch.object(optimizer, "SGD", megengine.optimizer.SGD):
        yield


# name -> the context that a step is made and run in
VARIANTS: dict[str, Callable[[], AbstractContextManager]] = {
    "stock": _stock,
    "ours": nullcontext,
}


def training_step(point: Point) -> Callable[[], None]:
    """A function that does one training step and waits for it."""
    model = models.create(point.arch)
    model.train()
    sgd = optimizer.make("sgd", optimizer.parameter_groups(model, 1e-4), lr=1e-3)
    grad_manager = GradManager().attach(model.parameters())
    rng = np.random.default_rng(0)
    images = rng.standard_normal((point.batch, 3, point.size, point.size)).astype(np.float32)
    labels = rng.integers(0, 1000, point.batch).astype(np.int32)

    def step() -> None:
        with grad_manager:
            loss, _ = losses.classification(model(mge.Tensor(images)), mge.Tensor(labels))
            grad_manager.backward(loss)
        sgd.step().clear_grad()
        loss.numpy()
        for parameter in model.parameters():
            parameter.numpy()

    return step


def seconds_per_step(
    point: Point,
    rounds: int,
    variants: dict[str, Callable[[], AbstractContextManager]] = VARIANTS,
    after_step: Callable[[], None] = lambda: None,
) -> dict[str, list[float]]:
    """Seconds of `rounds` steps of each variant, taken in turns after one warm-up step each."""
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
    """A row a variant: median and spread in seconds, images/s, and the speed-up over the first."""
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    first = next(iter(medians.values()))
    return [
        {
            "arch": point.arch,
            "size": point.size,
            "batch": point.batch,
            "variant": name,
            "seconds": medians[name],
            "fastest": min(times),
            "slowest": max(times),
            "images_per_second": point.batch / medians[name],
            "speedup": first / medians[name],
        }
        for name, times in seconds.items()
    ]
