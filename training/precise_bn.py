"""Batch-norm statistics for evaluation, as plain averages over many training images."""

from __future__ import annotations

from collections.abc import Iterable

import megengine as mge
import megengine.module as M
import numpy as np

from utils import UserError

from .distributed.process_group import Workers


def statistics(
    model: M.Module, batches: Iterable[np.ndarray], workers: Workers | None = None
) -> dict[str, mge.Tensor]:
    """Return the running mean and variance of every batch norm by name, for `swap.swapped`.

    The mean is that over all positions of all batches, and the variance is that within the batches
    plus that of the batches' means. Afterwards the network, its running statistics and its mode are
    as before. Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, 2021 (arXiv 2105.07576),
    section 3.

    Args:
        model: the network whose weights the statistics are for.
        batches: images float32 [N, C, H, W].
        workers: the processes whose batches count together, equally many in each.

    Raises UserError when there is no batch.
    """
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, M.BatchNorm1d | M.BatchNorm2d)
    }
    training, workers = model.training, workers or Workers()
    own = {
        name: (norm.momentum, norm.running_mean.detach(), norm.running_var.detach())
        for name, norm in norms.items()
    }
    counts = {}  # positions per batch and channel

    def note_count(module: M.Module, inputs: tuple[mge.Tensor], _: mge.Tensor) -> None:
        together = workers.size if getattr(module, "all_reduce", None) else 1
        counts[module] = inputs[0].size // module.num_features * together

    hooks = [norm.register_forward_hook(note_count) for norm in norms.values()]
    # [C] each: sums over the images of their batch's mean, variance and squared mean
    sums = {name: np.zeros((3, norm.num_features)) for name, norm in norms.items()}
    number = 0
    model.train()
    try:
        for norm in norms.values():
            norm.momentum = 0.0  # the running statistics are then those of the last batch
            norm.running_mean._reset(mge.Tensor(np.zeros(norm.running_mean.shape, np.float32)))
            norm.running_var._reset(mge.Tensor(np.ones(norm.running_var.shape, np.float32)))
        for images in batches:
            model(mge.Tensor(images))
            for name, norm in norms.items():
                mean, unbiased = (
                    tensor.numpy().reshape(-1).astype(np.float64)
                    for tensor in (norm.running_mean, norm.running_var)
                )
                biased = unbiased * ((counts[norm] - 1) / counts[norm])
                sums[name] += len(images) * np.stack([mean, biased, mean**2])
            number += len(images)
    finally:
        for hook in hooks:
            hook.remove()
        for name, norm in norms.items():
            norm.momentum, mean, var = own[name]
            norm.running_mean._reset(mean)
            norm.running_var._reset(var)
        model.train(training)
    number = workers.gather([number]).sum()
    if number == 0:
        raise UserError(
            "none of the images for --precise-bn could be read; leave out --skip-bad-images to see "
            "the name of the first of them"
        )
    result = {}
    for name, norm in norms.items():
        total = workers.gather(sums[name].ravel()).sum(axis=0)
        mean, within, squared_mean = total.reshape(3, -1) / number
        for key, value in ("running_mean", mean), ("running_var", within + squared_mean - mean**2):
            shape = norm.running_mean.shape
            result[f"{name}.{key}"] = mge.Tensor(value.reshape(shape).astype(np.float32))
    return result
