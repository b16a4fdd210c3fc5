"""The mathematics of re-parameterization, once for every family.

A branch of a re-parameterizable block is linear: a convolution, a batch norm in evaluation mode, or
nothing (the identity). So is a sum of branches. `LinearMap` holds such a thing as numbers, and the
functions below combine them:

    batch_norm(convolution(conv), bn)           a convolution followed by a batch norm
    add(a, b, ...)                              branches side by side, kernels of any odd size
    batch_norm(identity(channels, groups), bn)  a batch norm alone

Everything is computed in float64 and rounded once, when `to_conv2d` makes the fused convolution.
Kernels being large, a function may compute in the arrays it is given.

Source: Ding et al., RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, section 3.3.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import megengine as mge
import megengine.module as M
import numpy as np

from . import init


class LinearMap(NamedTuple):
    """A "same"-padded convolution: kernel float64 [O, I/groups, kh, kw], bias float64 [O]."""

    kernel: np.ndarray
    bias: np.ndarray


def convolution(conv: M.Conv2d) -> LinearMap:
    """The map of a convolution; its padding must be half its kernel, as in every branch here."""
    kernel = _float64(conv.weight)
    kernel = kernel.reshape(-1, *kernel.shape[-3:])  # grouped: [G, O/G, I/G, kh, kw] -> [O, ...]
    bias = np.zeros(len(kernel)) if conv.bias is None else _float64(conv.bias).reshape(-1)
    return LinearMap(kernel, bias)


def identity(channels: int, groups: int = 1) -> LinearMap:
    """The map that leaves [N, channels, H, W] as it is, as a 1x1 kernel in `groups` groups."""
    width = channels // groups
    kernel = np.eye(width)[np.arange(channels) % width]  # [O, I/groups]
    return LinearMap(kernel[:, :, None, None], np.zeros(channels))


def batch_norm(linear: LinearMap, bn: M.BatchNorm2d) -> LinearMap:
    """`linear`, then `bn` in evaluation mode: (x - mean) / sqrt(var + eps) * scale + shift."""
    gain, shift = _gain_and_shift(bn)
    kernel = np.multiply(linear.kernel, gain[:, None, None, None], out=linear.kernel)
    return LinearMap(kernel, linear.bias * gain + shift)


def add(*branches: LinearMap) -> LinearMap:
    """The sum of branches; smaller kernels are centred in the largest one."""
    height, width = (max(branch.kernel.shape[axis] for branch in branches) for axis in (2, 3))
    largest = next((b for b in branches if b.kernel.shape[2:] == (height, width)), None)
    kernel = np.zeros((*branches[0].kernel.shape[:2], height, width))
    if largest is not None:
        kernel = largest.kernel
    for branch in branches:
        if branch is largest:
            continue
        h, w = branch.kernel.shape[2:]
        top, left = (height - h) // 2, (width - w) // 2
        kernel[:, :, top : top + h, left : left + w] += branch.kernel
    return LinearMap(kernel, sum(branch.bias for branch in branches))


def batch_norm_before(bn: M.BatchNorm1d, linear: M.Linear) -> LinearMap:
    """`bn` in evaluation mode, then a linear layer: kernel [O, I]."""
    gain, shift = _gain_and_shift(bn)
    weight = _float64(linear.weight)
    return LinearMap(weight * gain, _float64(linear.bias) + weight @ shift)


def mean(*maps: LinearMap) -> LinearMap:
    """The mean of linear layers."""
    kernels, biases = zip(*maps, strict=True)
    return LinearMap(sum(kernels) / len(maps), sum(biases) / len(maps))


def to_linear(linear: LinearMap, like: M.Linear) -> M.Linear:
    """The linear layer that computes `linear`; class, dtype and mode from `like`."""
    with init.uninitialized():
        layer = type(like)(like.in_features, like.out_features)
    dtype = like.weight.dtype
    layer.weight = mge.Parameter(linear.kernel.astype(dtype))
    layer.bias = mge.Parameter(linear.bias.astype(dtype))
    layer.train(like.training)
    return layer


def to_conv2d(linear: LinearMap, like: M.Conv2d) -> M.Conv2d:
    """The convolution that computes `linear`: class, stride, groups, dtype and mode from `like`."""
    kernel_size = linear.kernel.shape[-2:]
    with init.uninitialized():
        conv = type(like)(
            like.in_channels,
            like.out_channels,
            kernel_size,
            stride=like.stride,
            padding=tuple(size // 2 for size in kernel_size),
            groups=like.groups,
            bias=True,
        )
    dtype = like.weight.dtype
    conv.weight = mge.Parameter(linear.kernel.reshape(conv.weight.shape).astype(dtype))
    conv.bias = mge.Parameter(linear.bias.reshape(conv.bias.shape).astype(dtype))
    conv.train(like.training)
    return conv


def to_deploy(model: M.Module) -> M.Module:
    """A new Module in deploy form that computes what `model` computes in evaluation mode.

    `model` may be a network, a single block or any Module that contains blocks, and is left as it
    was. Every Module with a `fuse_in_place` method is asked to fuse itself, in the copy. Fusing a
    deploy-form Module again gives an equal one.
    """
    originals = {id(t): t for t in (*model.parameters(), *model.buffers())}
    deployed = copy.deepcopy(model, originals.copy())  # shares the tensors: most will be dropped
    fuse_in_place(deployed)
    tensors = (*deployed.parameters(), *deployed.buffers())
    return copy.deepcopy(deployed, {id(t): t for t in tensors if id(t) not in originals})


def fuse_in_place(model: M.Module) -> None:
    """Bring `model` itself into deploy form, block by block, for want of memory for both forms."""
    # a list of these alone, so that the branches are freed as they are fused
    for module in [module for module in model.modules() if hasattr(module, "fuse_in_place")]:
        module.fuse_in_place()
        mge._full_sync()  # what MegEngine has queued, it has not freed


def gain_and_shift(
    scale: np.ndarray, shift: np.ndarray, average: np.ndarray, variance: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """A batch norm in evaluation mode as x * gain + shift, float64 [C] each."""
    scale, shift, average, variance = (
        array.astype(np.float64).reshape(-1) for array in (scale, shift, average, variance)
    )
    with np.errstate(invalid="ignore"):  # a negative variance makes NaN
        gain = scale / np.sqrt(variance + eps)
    return gain, shift - average * gain


def _gain_and_shift(bn: M.Module) -> tuple[np.ndarray, np.ndarray]:
    tensors = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    return gain_and_shift(*(tensor.numpy() for tensor in tensors), bn.eps)


def _float64(tensor: mge.Tensor) -> np.ndarray:
    return tensor.numpy().astype(np.float64)
