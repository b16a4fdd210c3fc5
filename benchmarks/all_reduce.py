"""Measure how long the workers take to average the gradients of a network, as after every step."""

from __future__ import annotations

import statistics
import time

import models

import megengine as mge
import numpy as np

from training.distributed.process_group import Workers
from utils import UserError

_WARM_UP = 2  # rounds that are not counted: connections are made when they are first used


def measure(arch: str, rounds: int, workers: Workers) -> list[dict]:
    """Return a row for the slowest worker, in seconds, over `rounds` rounds; all must call it.

    The gradients are those of the network with ImageNet's 1,000 classes. Raises UserError when this
    worker is alone.
    """
    if workers.size == 1:
        raise UserError(
            "an all-reduce takes several workers; give --ngpus 2, or for several hosts start it by "
            "mpiexec -n 2 -hosts A,B"
        )
    gradients = [
        mge.Tensor(np.ones(parameter.shape, np.float32))
        for parameter in models.create(arch).parameters()
    ]
    own = [_seconds(gradients, workers) for _ in range(_WARM_UP + rounds)]
    seconds = workers.gather(own).max(axis=0)[_WARM_UP:]
    return [
        {
            "arch": arch,
            "megabytes": sum(gradient.size for gradient in gradients) * 4 / 1e6,
            "workers": workers.size,
            "hosts": len(set(workers.hosts)) or None,  # where that is known
            "seconds": statistics.median(seconds),
            "fastest": min(seconds),
            "slowest": max(seconds),
        }
    ]


def _seconds(gradients: list[mge.Tensor], workers: Workers) -> float:
    """Return the seconds of one all-reduce, which all workers begin at the same time."""
    mge._full_sync()
    workers.gather([0])
    started = time.perf_counter()
    workers.average(gradients)
    mge._full_sync()
    return time.perf_counter() - started
