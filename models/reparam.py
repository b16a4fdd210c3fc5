"""The mathematics of re-parameterization, once for every family.

A branch of a re-parameterizable block is linear: a convolution, a batch norm in evaluation mode, or
nothing (the identity). So is a sum of branches. `LinearMap` holds such a thing as numbers, and the
functions below combine them:

    batch_norm(convolution(conv), bn)           a convolution followed by a batch norm
    add(a, b, ...)                              branches side by side, kernels of any odd size
    batch_norm(identity(channels, groups), bn)  a batch norm alone

Everything is computed in float64 and rounded once, when `to_conv2d` makes the fused convolution.
Kernels being large, a function may compute in the arrays it is given. Within `fused_weights` the
same functions compute with MegEngine's float32 tensors, through which gradients flow.

Source: Ding et al., RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, section 3.3.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np

from . import init

Numbers = np.ndarray | mge.Tensor  # float64 arrays, or float32 tensors within `fused_weights`
_as_tensors = False


class LinearMap(NamedTuple):
    """A "same"-padded convolution: kernel [O, I/groups, kh, kw], bias [O]."""

    kernel: Numbers
    bias: Numbers


def convolution(conv: M.Conv2d) -> LinearMap:
    """The map of a convolution; its padding must be half its kernel, as in every branch here."""
    kernel = _numbers(conv.weight)
    kernel = kernel.reshape(-1, *kernel.shape[-3:])  # grouped: [G, O/G, I/G, kh, kw] -> [O, ...]
    bias = _constant(np.zeros(kernel.shape[0])) if conv.bias is None else _numbers(conv.bias)
    return LinearMap(kernel, bias.reshape(-1))


def identity(channels: int, groups: int = 1) -> LinearMap:
    """The map that leaves [N, channels, H, W] as it is, as a 1x1 kernel in `groups` groups."""
    width = channels // groups
    kernel = np.eye(width)[np.arange(channels) % width]  # [O, I/groups]
    return LinearMap(_constant(kernel[:, :, None, None]), _constant(np.zeros(channels)))


def batch_norm(linear: LinearMap, bn: M.BatchNorm2d) -> LinearMap:
    """`linear`, then `bn` in evaluation mode: (x - mean) / sqrt(var + eps) * scale + shift."""
    gain, shift = _gain_and_shift(bn)
    gains = gain.reshape(-1, 1, 1, 1)
    if _as_tensors:
        kernel = linear.kernel * gains
    else:
        kernel = np.multiply(linear.kernel, gains, out=linear.kernel)
    return LinearMap(kernel, linear.bias * gain + shift)


def add(*branches: LinearMap) -> LinearMap:
    """The sum of branches; smaller kernels are centred in the largest one."""
    height, width = (max(branch.kernel.shape[axis] for branch in branches) for axis in (2, 3))
    largest = next((b for b in branches if b.kernel.shape[2:] == (height, width)), None)
    kernel = _constant(np.zeros((*branches[0].kernel.shape[:2], height, width)))
    if largest is not None:
        kernel = largest.kernel
    for branch in branches:
        if branch is largest:
            continue
        h, w = branch.kernel.shape[2:]
        top, left = (height - h) // 2, (width - w) // 2
        if _as_tensors:  # by a matrix product: F.nn.pad takes 20 times as long on a CPU
            places = np.zeros((h, w, height, width))
            np.einsum("hwhw->hw", places[:, :, top : top + h, left : left + w])[...] = 1
            placed = F.matmul(
                branch.kernel.reshape(-1, h * w), _constant(places.reshape(h * w, -1))
            )
            kernel = kernel + placed.reshape(kernel.shape)
        else:
            kernel[:, :, top : top + h, left : left + w] += branch.kernel
    return LinearMap(kernel, sum(branch.bias for branch in branches))


def batch_norm_before(bn: M.BatchNorm1d, linear: M.Linear) -> LinearMap:
    """`bn` in evaluation mode, then a linear layer: kernel [O, I]."""
    gain, shift = _gain_and_shift(bn)
    weight = _numbers(linear.weight)
    return LinearMap(weight * gain, _numbers(linear.bias) + weight @ shift)


def mean(*maps: LinearMap) -> LinearMap:
    """The mean of linear layers."""
    kernels, biases = zip(*maps, strict=True)
    return LinearMap(sum(kernels) / len(maps), sum(biases) / len(maps))


def to_linear(linear: LinearMap, like: M.Linear) -> M.Linear:
    """The linear layer that computes `linear`; class, dtype and mode from `like`."""
    with init.uninitialized():
        layer = type(like)(like.in_features, like.out_features)
    layer.weight = _parameter(linear.kernel, layer.weight.shape, like.weight.dtype)
    layer.bias = _parameter(linear.bias, layer.bias.shape, like.weight.dtype)
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
    conv.weight = _parameter(linear.kernel, conv.weight.shape, like.weight.dtype)
    conv.bias = _parameter(linear.bias, conv.bias.shape, like.weight.dtype)
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


def fused_weights(model: M.Module) -> dict[str, mge.Tensor]:
    """Name -> each tensor of `model`'s deploy form, as a function of the parameters of `model`.

    Gradients flow through them to the branches; batch norms count as in evaluation mode, with their
    running statistics. Computed in float32, so that they differ from `to_deploy`'s in the last
    bits. Source: RepQ, BMVC 2023 (arXiv 2311.05317).
    """
    global _as_tensors
    tensors = {id(t): t for t in (*model.parameters(), *model.buffers())}
    deployed = copy.deepcopy(model, tensors)
    _as_tensors = True
    try:
        fuse_in_place(deployed)
    finally:
        _as_tensors = False
    return {
        f"{path}.{name}": tensor
        for path, module in deployed.named_modules()
        for name in ("weight", "bias")
        if isinstance(tensor := getattr(module, name, None), mge.Tensor)
    }


def gain_and_shift(
    scale: Numbers, shift: Numbers, average: Numbers, variance: Numbers, eps: float
) -> tuple[Numbers, Numbers]:
    """A batch norm in evaluation mode as x * gain + shift, [C] each; float64 from arrays."""
    scale, shift, average, variance = (
        (x if isinstance(x, mge.Tensor) else x.astype(np.float64)).reshape(-1)
        for x in (scale, shift, average, variance)
    )
    with np.errstate(invalid="ignore"):  # a negative variance makes NaN
        gain = scale / (variance + eps) ** 0.5
    return gain, shift - average * gain


def _gain_and_shift(bn: M.Module) -> tuple[Numbers, Numbers]:
    tensors = (bn.weight, bn.bias, bn.running_mean, bn.running_var)
    return gain_and_shift(*map(_numbers, tensors), bn.eps)


def _numbers(tensor: mge.Tensor) -> Numbers:
    return tensor if _as_tensors else tensor.numpy().astype(np.float64)


def _constant(array: np.ndarray) -> Numbers:
    return mge.Tensor(array, dtype="float32") if _as_tensors else array


def _parameter(numbers: Numbers, shape: tuple[int, ...], dtype: np.dtype) -> mge.Tensor:
    numbers = numbers.reshape(shape)
    return numbers if _as_tensors else mge.Parameter(numbers.astype(dtype))
