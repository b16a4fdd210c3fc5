"""Counting the parameters and multiply-adds of a network by running it."""

from __future__ import annotations

import copy
from typing import NamedTuple

import megengine as mge
import megengine.module as M
import numpy as np


class Profile(NamedTuple):
    """Size and cost of a network."""

    parameters: int  # elements of all learnt tensors
    macs: int  # multiply-adds of the forward pass of one image


def profile(model: M.Module, size: int | tuple[int, int] = 224, training: bool = True) -> Profile:
    """Count parameters, and the multiply-adds of convolutions and linear layers for one image.

    Biases, batch norms and activations are not counted as multiply-adds, as is usual.

    Args:
        model: a network for images of `model.in_chans` channels, or of three if it does not say;
            it is not changed, a copy of it runs.
        size: side of the image in pixels, or (height, width).
        training: run in training mode, with auxiliary heads; otherwise in evaluation mode.
    """
    height, width = size if isinstance(size, tuple) else (size, size)
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
    model(mge.Tensor(np.zeros((1, getattr(model, "in_chans", 3), height, width), np.float32)))
    return Profile(sum(int(np.prod(p.shape)) for p in model.parameters()), macs)
