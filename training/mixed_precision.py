"""Mixed precision: bfloat16 on a CPU, half precision on a GPU.

On a GPU it is MegEngine's own, to its documented interface; nothing here has been run on a GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

from models import cpu
from models.environment import on_cpu, processor_has
from models.staged import StagedClassifier

import megengine as mge
import numpy as np
from megengine.amp import GradScaler, autocast


def applied(wanted: bool) -> AbstractContextManager:
    """Return a context in which forward and backward passes use it if `wanted`."""
    if not wanted:
        return nullcontext()
    return cpu.bfloat16() if on_cpu() else autocast(enabled=True)


def of_update(wanted: bool) -> AbstractContextManager:
    """Return a context in which Muon's products of matrices use it on a CPU if `wanted`."""
    return cpu.bfloat16() if wanted and on_cpu() else nullcontext()


def loss_scaler(wanted: bool) -> GradScaler | None:
    """Return the scaler of the loss, which half precision needs and bfloat16 does not."""
    return GradScaler() if wanted and not on_cpu() else None


def note(
    wanted: bool, model: StagedClassifier, size: int, drop_path: Sequence[float]
) -> str | None:
    """Return a line for the log where --amp has no effect, else None.

    Args:
        wanted: whether it was given.
        model: the network, as it is trained.
        size: sides of the images in pixels.
        drop_path: probabilities of all epochs, with which blocks are computed one by one.
    """
    if not wanted or not on_cpu():
        return None
    if not processor_has("avx512_bf16"):
        return "--amp has no effect: this processor has no instructions for bfloat16 (avx512_bf16)"
    image = mge.Tensor(np.zeros((1, model.in_chans, size, size), np.float32))
    if any(drop_path) or not model.is_compiled(image):
        return (
            "--amp has no effect on this network: it is for what compiled programs compute (see "
            "Computing on a CPU in docs/training.md)"
        )
    return None
