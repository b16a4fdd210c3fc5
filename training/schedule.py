"""The learning rate, in closed form."""

from __future__ import annotations

import math


def cosine(step: int, total: int, warmup: int, lr: float) -> float:
    """The learning rate of step 0, 1, ... total - 1.

    It rises linearly over `warmup` steps, is exactly `lr` at step `warmup`, and follows half a
    cosine from there down to 0 at step `total`, the end. Source: Loshchilov and Hutter, SGDR,
    ICLR 2017, without restarts.
    """
    if step < warmup:
        return lr * (step + 1) / (warmup + 1)
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))
