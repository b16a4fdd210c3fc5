"""Mixed precision: half precision on a GPU, bfloat16 on a CPU.

On a GPU it is MegEngine's own, to its documented interface; nothing here has been run on a GPU.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from models import cpu
from models.environment import on_cpu

from megengine.amp import GradScaler, autocast


def applied(wanted: bool) -> AbstractContextManager:
    """Return a context in which forward and backward passes use it if `wanted`."""
    if not wanted:
        return nullcontext()
    return cpu.bfloat16() if on_cpu() else autocast(enabled=True)


def of_update(wanted: bool) -> AbstractContextManager:
    """Return a context in which Muon's products of matrices use it on a CPU if `wanted`."""
    return cpu.bfloat16() if wanted and on_cpu() else nullcontext()


def note(wanted: bool) -> str | None:
    """Return a sentence for the log where it is wanted and cannot be had."""
    if not wanted or not on_cpu() or cpu.has_bfloat16():
        return None
    if cpu.path() != "fast":
        return f"--amp changes nothing: REPARAM_CPU={cpu.path()} computes in float32"
    return "--amp changes nothing: this processor has no instructions for bfloat16 (avx512_bf16)"


def loss_scaler(wanted: bool) -> GradScaler | None:
    """Return the scaler of the loss, which half precision needs and bfloat16 does not."""
    return GradScaler() if wanted and not on_cpu() else None
