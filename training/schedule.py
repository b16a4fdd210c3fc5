"""The learning rate of every step, in closed form."""

from __future__ import annotations

import math
from collections.abc import Collection

SCHEDULES = ("cosine", "step", "constant")


def learning_rate(
    step: int,
    total: int,
    lr: float,
    schedule: str = "cosine",
    warmup: int = 0,
    warmup_lr: float | None = None,
    min_lr: float = 0.0,
    milestones: Collection[int] = (),
    factor: float = 0.1,
) -> float:
    """Return the learning rate of step 0, 1, ... total - 1.

    It rises linearly over `warmup` steps, from `warmup_lr` at step 0 (None: as if it had come from
    zero one step before) to exactly `lr` at step `warmup`. From there it follows the schedule:

    - "cosine": half a cosine, down to `min_lr` at step `total`, the end. Source: Loshchilov and
      Hutter, SGDR, ICLR 2017, without restarts.
    - "step": multiplied by `factor` at each of the steps in `milestones`.
    - "constant": stays at `lr`.
    """
    if step < warmup:
        start = lr / (warmup + 1) if warmup_lr is None else warmup_lr
        return start + (lr - start) * step / warmup
    if schedule == "cosine":
        progress = (step - warmup) / max(1, total - warmup)
        return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "step":
        return lr * factor ** sum(step >= milestone for milestone in milestones)
    return lr
