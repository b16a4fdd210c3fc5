"""Training in less memory: activations are computed again.

Gradient checkpointing (Chen et al., Training Deep Nets with Sublinear Memory Cost,
arXiv 1604.06174) with every block a segment, and MegEngine's queue emptied after each, as it
allocates when an operator is queued and frees when it has run. What is freed should also go back
to the system: environment.return_freed_memory. The results have the same bits as without it where
a network is computed operator by operator; compiled programs (models/cpu/fast/) round differently.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from models import cpu, environment

import megengine as mge
import megengine.module as M
import numpy as np
from megengine.autodiff import GradManager

from data import by_epoch

from . import memory
from .distributed.process_group import Workers
from .run_folder import RunFolder


def backward_at_once(
    model: M.Module, grad_manager: GradManager, images: mge.Tensor, objective: Callable
) -> tuple[mge.Tensor, ...]:
    """Compute the gradients of a network in one backward pass that keeps all activations."""
    with grad_manager:
        result = objective(model(images))
        grad_manager.backward(result[0])
    return tuple(tensor.detach() for tensor in result)


def backward(
    model: M.Module,
    grad_manager: GradManager,
    images: mge.Tensor,
    objective: Callable,
) -> tuple[mge.Tensor, ...]:
    """Compute the gradients of a network in training mode, one block at a time.

    Only the maps between blocks are kept. What is within a block is computed again when its
    gradients are needed, at the cost of one more forward pass. Returns what `objective` returns,
    detached.

    Args:
        model: has `segments`, see models.staged.StagedClassifier.
        grad_manager: has the parameters attached whose `grad` is to be computed.
        images: [N, C, H, W].
        objective: function of the network's outputs; the first tensor it returns is minimized.
    """
    # A gradient may be added up here from a part of the loss and a block, and as elsewhere that sum
    # is added to what earlier parts of a batch have left.
    earlier = [(p, p.grad) for p in grad_manager.attached_tensors() if p.grad is not None]
    for parameter, _ in earlier:
        parameter.grad = None
    *segments, last = model.segments()
    maps, heads, logits = [images], [], {}
    for segment in segments:
        x, of_segment = _split(segment(maps[-1]))
        mge._full_sync()
        maps.append(x)
        heads.append(list(of_segment))
        logits.update(of_segment)
    with grad_manager:
        grad_manager.attach([maps[-1], *logits.values()])
        outputs = last(maps[-1])
        result = objective({**logits, "main": outputs} if logits else outputs)
        grad_manager.backward(result[0])
    result = tuple(tensor.detach() for tensor in result)
    del outputs
    # Batch norms would otherwise count the same batch twice.
    statistics = [(buffer, buffer.detach()) for buffer in model.buffers()]
    while segments:
        after, segment = maps.pop(), segments.pop()
        names = heads.pop()
        with grad_manager:
            if segments:  # the images need no gradient
                grad_manager.attach(maps[-1])
            x, of_segment = _split(segment(maps[-1]))
            ends = {x: after.grad} | {of_segment[name]: logits[name].grad for name in names}
            grad_manager.backward(list(ends), list(ends.values()))
        del after, x, of_segment, ends
        mge._full_sync()
    for buffer, value in statistics:
        buffer._reset(value)
    for parameter, grad in earlier:
        parameter.grad = grad if parameter.grad is None else grad + parameter.grad
    return result


def _split(outcome: mge.Tensor | tuple) -> tuple[mge.Tensor, dict[str, mge.Tensor]]:
    """Return the map that a segment gives, and the logits of its auxiliary heads."""
    return outcome if isinstance(outcome, tuple) else (outcome, {})


def usual_need(model: M.Module, size: int, images: int, compiled: bool = True) -> int:
    """Estimate the bytes that a process needs for usual training on `images` of `size` pixels.

    Each output of a layer counts once in a compiled program, which reuses its memory, and three
    times operator by operator. Measured with RepVGGA0 operator by operator: 1.6 GB for 16 images
    of 224 px and 5.7 GB for 64; 1.9 GB for 32 of 128; compiled: docs/benchmarks.md.

    Args:
        model: in training mode.
        size: sides of the images in pixels.
        images: number of images in a step.
        compiled: whether compiled programs may be used, where they can compute the network.
    """
    outputs = 0

    def count(_module: M.Module, _inputs: tuple, output: mge.Tensor) -> None:
        nonlocal outputs
        outputs += int(np.prod(output.shape))

    image = mge.Tensor(np.zeros((1, model.in_chans, size, size), np.float32))
    copies = 1 if compiled and model.is_compiled(image) else 3
    layers = [module for module in model.modules() if not list(module.children())]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    state = [(tensor, tensor.detach()) for tensor in model.buffers()]
    model(image)
    for hook in hooks:
        hook.remove()
    for tensor, value in state:
        tensor._reset(value)
    weights = sum(parameter.size for parameter in model.parameters())
    return 4 * (copies * outputs * images + 4 * weights) + (500 << 20)


def is_needed(
    args: argparse.Namespace, model: M.Module, cpu_path: str, workers: Workers, folder: RunFolder
) -> bool:
    """Return what --low-memory says, or without it whether memory is short; log the latter.

    `cpu_path` is how a CPU computes where memory is not short, see models.cpu.
    """
    # a frozen trunk keeps no activations
    if args.low_memory is not None or args.qat or args.freeze:
        return bool(args.low_memory)
    with cpu.using(cpu_path):
        return _memory_is_short(args, model, workers, folder)


def _memory_is_short(
    args: argparse.Namespace, model: M.Module, workers: Workers, folder: RunFolder
) -> bool:
    """Return whether the CPU workers of some host need more memory than is free on it."""
    if environment.gpu_count():
        return False
    share = -(-args.batch_size // workers.size)
    images = -(-share // args.accumulate)
    shared_norms = args.sync_bn and workers.size > 1
    operator_by_operator = shared_norms or any(by_epoch.values(args.drop_path))
    if not operator_by_operator and share % args.accumulate:
        images += images - 1  # a program for each of the two sizes that the parts have
    need = workers.local_size * usual_need(
        model, max(by_epoch.values(args.size)), images, compiled=not operator_by_operator
    )
    # all decide alike, by the host that is shortest of memory
    needed, free = workers.gather([need, memory.available_memory()]).T
    worst = int((free - needed).argmin())
    need, available = needed[worst], free[worst]
    if need < available:
        return False
    folder.log(
        f"--low-memory is switched on: training as usual may take {need / 2**30:.1f} GB, "
        f"and {available / 2**30:.1f} GB are free; the result differs by rounding alone "
        "(--no-low-memory: leave it off)"
    )
    return True
