"""A process that runs training steps, of PyTorch or of this project, when it is asked.

`python -m benchmarks.training_worker VARIANT NETWORK SIZE BATCH THREADS LIMIT` prints {} after its
warm-up. It answers each line of input by a line of JSON with the "seconds" of a step. The process
ends when its input ends. REPARAM_CORES names the cores that it may use.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable

import numpy as np

from deployment.child_process import time_limit

WARM_UP = 3  # steps before the first turn


def pytorch_step(network: str, size: int, batch: int, threads: int) -> Callable[[], None]:
    """Return a function that runs a training step of the network that timm knows by this name.

    The optimizer is SGD with momentum and weight decay, as in `training_step`.
    """
    import timm
    import torch

    torch.set_num_threads(threads)
    model = timm.create_model(network).train()
    sgd = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=1e-4)
    loss_of = torch.nn.functional.cross_entropy
    rng = np.random.default_rng(0)
    images = rng.standard_normal((batch, 3, size, size)).astype(np.float32)
    labels = torch.from_numpy(rng.integers(0, 1000, batch))

    def step() -> None:
        logits = model(torch.from_numpy(images))
        heads = logits if isinstance(logits, tuple | list) else [logits]
        loss = sum(loss_of(head, labels) for head in heads)
        loss.backward()
        sgd.step()
        sgd.zero_grad()
        loss.item()

    return step


def our_step(arch: str, size: int, batch: int, threads: int) -> Callable[[], None]:
    """Return a function that runs a training step of this project's."""
    from models import environment

    environment.tune_for_computing()

    from .training_step import Point, training_step

    return training_step(Point(arch, size, batch))


STEPS = {"PyTorch": pytorch_step, "ours": our_step}


def main() -> None:
    """Answer on the standard output of the start; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    variant, network, *numbers, limit = sys.argv[1:]
    os.sched_setaffinity(0, map(int, os.environ["REPARAM_CORES"].split(",")))
    with time_limit(float(limit)):
        step = STEPS[variant](network, *map(int, numbers))
        for _ in range(WARM_UP):
            step()
    print("{}", file=answers, flush=True)
    for _ in sys.stdin:
        with time_limit(float(limit)):
            start = time.perf_counter()
            step()
            elapsed = time.perf_counter() - start
        print(json.dumps({"seconds": elapsed}), file=answers, flush=True)


if __name__ == "__main__":
    main()
