"""Three ways to train on a CPU: MegEngine's operators, others built from them, compiled programs.

- "stock": MegEngine's own operators.
- "matmul": the folder matmul/, which builds the operators whose gradients are slow from matrix
  products and other fast operators of MegEngine.
- "fast": the folder fast/, which compiles the whole network into a program of oneDNN's
  convolutions and own loops. What it cannot do, and the rest of the network, is done by "matmul".

The environment variable REPARAM_CPU chooses one; "fast" is the default.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import megengine as mge
import megengine.module as M
from megengine.core._imperative_rt.core2 import is_tracing_module
from megengine.core.autodiff.grad import Grad
from megengine.jit.tracing import is_tracing

from .matmul import SMALL_KERNEL, SMALL_MAP, add_bias, batch_norm, conv2d, relu, scale_channels
from .symbol import Symbol, Trace

__all__ = ["PATHS", "SMALL_KERNEL", "SMALL_MAP", "Symbol", "add_bias", "batch_norm", "bfloat16",
           "compute", "conv2d", "covers", "evaluation", "has_bfloat16", "is_chosen", "is_recorded",
           "is_used", "orthogonal", "path", "relu", "scale_channels", "update_by_adamw",
           "update_by_momentum", "using"]  # fmt: skip

PATHS = ("stock", "matmul", "fast")
_path: ContextVar[str | None] = ContextVar("path", default=None)
_evaluates: ContextVar[bool] = ContextVar("evaluates", default=False)
_rounds: ContextVar[bool] = ContextVar("rounds", default=False)


def path() -> str:
    """Return the way to compute: what `using` says, or REPARAM_CPU, or "fast".

    Raises ValueError for another word in REPARAM_CPU.
    """
    chosen = _path.get() or os.environ.get("REPARAM_CPU") or "fast"
    if chosen not in PATHS:
        raise ValueError(f"REPARAM_CPU is {chosen!r}; give {', '.join(PATHS)}")
    return chosen


def is_chosen() -> bool:
    """Return whether the user or a caller has said how to compute."""
    return bool(_path.get() or os.environ.get("REPARAM_CPU"))


@contextmanager
def using(path: str) -> Iterator[None]:
    """Make this thread compute by `path`, one of PATHS: `with cpu.using("stock"):`."""
    token = _path.set(path)
    try:
        yield
    finally:
        _path.reset(token)


@contextmanager
def evaluation() -> Iterator[None]:
    """Compute fused networks by programs in this thread, on all cores: `with cpu.evaluation():`.

    It is for many batches of one shape, of which no gradients are needed.
    """
    token = _evaluates.set(True)
    try:
        yield
    finally:
        _evaluates.reset(token)


@contextmanager
def bfloat16() -> Iterator[None]:
    """Compute products of programs in bfloat16 in this thread: `with cpu.bfloat16():`.

    Where the processor has instructions for it, inputs, weights and gradients of dense convolutions
    are rounded, and their products summed in float32. The factors of products in `orthogonal` are
    rounded likewise, where that is faster. All else stays as it is.
    """
    token = _rounds.set(True)
    try:
        yield
    finally:
        _rounds.reset(token)


def has_bfloat16() -> bool:
    """Return whether `bfloat16` has an effect: programs can be used, and the processor has it."""
    if not _may_use_programs():
        return False
    from . import fast

    return fast.has_bfloat16()


def is_used() -> bool:
    """Return whether this project's operators replace MegEngine's: on a CPU, not for "stock".

    A traced network keeps MegEngine's own operators, because it is going to be exported. So does
    one that several GradManagers record: those of this project go backward once.
    """
    if path() == "stock" or is_tracing() or is_tracing_module() or len(_recording()) > 1:
        return False
    return _on_cpu(mge.get_default_device())


def is_recorded(*tensors: mge.Tensor) -> bool:
    """Return whether a GradManager records what is computed of one of these tensors."""
    return any(grad._is_attached_to(tensor) for grad in _recording() for tensor in tensors)


def _recording() -> list[Grad]:
    """Return the records that GradManagers are making."""
    return [grad for group in Grad.stack for ref in group if (grad := ref()) is not None]


@cache
def _on_cpu(device: str) -> bool:
    return device.startswith(("cpu", "multithread")) or not mge.is_cuda_available()


def compute(
    model: M.Module, function: Callable[[mge.Tensor], mge.Tensor], x: mge.Tensor
) -> mge.Tensor | None:
    """Return `function(x)`, a map that a part of `model` computes, by a compiled program.

    None is returned where another way is to be used: in evaluation mode but for `evaluation`, and
    by the rules of fast/rules.py.
    """
    trace = _traced(model, function, x)
    if trace is None:
        return None
    from .fast import network  # it needs packages that may be missing

    return network.run(model, trace, x, _rounds.get())


def covers(model: M.Module, function: Callable[[mge.Tensor], mge.Tensor], x: mge.Tensor) -> bool:
    """Return whether `compute` would use a compiled program; nothing is compiled or computed."""
    return _traced(model, function, x) is not None


def _traced(
    model: M.Module, function: Callable[[mge.Tensor], mge.Tensor], x: mge.Tensor
) -> Trace | None:
    if not ((model.training or _evaluates.get()) and _may_use_programs()):
        return None
    from . import fast

    return fast.traced(model, function, x)


def _may_use_programs() -> bool:
    """Return whether "fast" is chosen, where MegEngine's operators may be replaced."""
    return path() == "fast" and is_used()


def update_by_momentum(
    owner: object, parameters: list[mge.Tensor], velocities: list[mge.Tensor], **settings: float
) -> bool:
    """Update parameters in a compiled pass and return True; return False where there is none.

    For the arguments see fast/momentum.py. Memory is kept for `owner` as long as it lives.
    """
    if not _may_use_programs():
        return False
    from . import fast

    return fast.update_by_momentum(owner, parameters, velocities, **settings)


def update_by_adamw(
    owner: object,
    parameters: list[mge.Tensor],
    means: list[mge.Tensor],
    squares: list[mge.Tensor],
    **numbers: Any,
) -> bool:
    """Update parameters in a compiled pass and return True; return False where there is none.

    For the arguments see fast/adamw.py. Memory is kept for `owner` as long as it lives.
    """
    if not _may_use_programs():
        return False
    from . import fast

    return fast.update_by_adamw(owner, parameters, means, squares, **numbers)


def orthogonal(
    owner: object, matrices: list[mge.Tensor], steps: tuple[tuple[float, float, float], ...]
) -> list[mge.Tensor] | None:
    """Return matrices made orthogonal by a compiled program, or None where there is none.

    For the arguments see fast/newton_schulz.py. Memory is kept for `owner` as long as it lives.
    """
    if not _may_use_programs():
        return None
    from . import fast

    return fast.orthogonal(owner, matrices, steps, _rounds.get())
