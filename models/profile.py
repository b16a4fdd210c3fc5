"""Counting a network's parameters and multiply-adds from the live Modules."""

from __future__ import annotations

import copy
from typing import NamedTuple

import megengine as mge
import megengine.module as M
import numpy as np


class Profile(NamedTuple):
    """parameters: numbers learnt; macs: multiply-adds of one image's forward pass."""

    parameters: int
    macs: int


def profile(model: M.Module, size: int | tuple[int, int] = 224, training: bool = True) -> Profile:
    """Parameters, and multiply-adds of convolutions and linear layers for one `size` image.

    Counted while a copy of the model runs in training mode, so that what exists in training only
    (auxiliary heads) is in the figures of a train form; in evaluation mode without `training`.
    Biases, batch norms and activations are not counted as multiply-adds, as is usual.
    """
    height, width = (size, size) if isinstance(size, int) else size
    macs = 0

    def count(module: M.Module, inputs: tuple, output: mge.Tensor) -> None:
        nonlocal macs
        per_output = np.prod(module.weight.shape[-3:])  # convolution: [..., I/groups, kh, kw]
        if isinstance(module, M.Linear):
            per_output = module.in_features
        macs += int(np.prod(output.shape)) * int(per_output)

    model = copy.deepcopy(model)
    model.train(training)
    for module in model.modules():
        if isinstance(module, M.Conv2d | M.Linear):
            module.register_forward_hook(count)
    model(mge.Tensor(np.zeros((1, 3, height, width), np.float32)))
    return Profile(sum(int(np.prod(p.shape)) for p in model.parameters()), macs)
