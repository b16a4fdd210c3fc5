"""The mathematics of re-parameterization, once for every family.

A branch of a re-parameterizable block is linear: a convolution, a batch norm in evaluation mode, or
nothing (the identity). So is a sum of branches. `LinearMap` holds such a thing as numbers, and the
functions below combine them:

    batch_norm(convolution(conv, read), bn, read)           a convolution and its batch norm
    batch_norm(identity(channels, groups, read), bn, read)  a batch norm alone
    batch_norm_before(bn, a, read)                          the reverse, for 1x1 convolutions
    add(a, b, ...)                                          parallel branches, odd kernel sizes
    scaled(a, factors), negative(a)                         a layer scale; a subtracted branch

The argument `read` says how parameters become numbers. With `float64` they are NumPy arrays, and
are rounded once, when `to_conv2d` makes the fused convolution; as kernels are large, a function may
overwrite the arrays it is given. With `differentiable` they stay MegEngine's float32 tensors, and
gradients flow from the fused convolution to the branches.

Source: Ding et al., RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021, section 3.3.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np

from . import init

Numbers: TypeAlias = np.ndarray | mge.Tensor
Read = Callable[[mge.Tensor], Numbers]


def float64(tensor: mge.Tensor) -> np.ndarray:
    """Return the values of a tensor as a new float64 array."""
    return tensor.numpy().astype(np.float64)


class Exact(np.ndarray):
    """A float64 array that is not rounded where it becomes the weight of a fused layer."""


def exact(tensor: mge.Tensor) -> Exact:
    """Return the values of a tensor as a new float64 array that `to_conv2d` does not round."""
    return float64(tensor).view(Exact)


def differentiable(tensor: mge.Tensor) -> mge.Tensor:
    """Return the tensor itself, so that gradients flow back to it."""
    return tensor


class LinearMap(NamedTuple):
    """A "same"-padded convolution, kernel [O, I/groups, kh, kw] and bias [O], or a linear layer.

    The kernel of a linear layer is [O, I].
    """

    kernel: Numbers
    bias: Numbers


def convolution(conv: M.Conv2d, read: Read) -> LinearMap:
    """Return the map of a convolution whose padding is half its kernel, as in every branch here.

    Raises ValueError for another padding and for dilation.
    """
    half = tuple(size // 2 for size in conv.kernel_size)
    padding, dilation = tuple(conv.padding), tuple(conv.dilation)
    if (padding, conv.padding_mode, dilation) != (half, "zeros", (1, 1)):
        raise ValueError(
            f"a {type(conv).__name__} has padding {padding} of {conv.padding_mode!r} and dilation "
            f"{dilation}, but only padding {half} of 'zeros' and no dilation can be fused; change "
            "it, or leave its block in train form"
        )
    kernel = read(conv.weight)
    kernel = kernel.reshape(-1, *kernel.shape[-3:])  # grouped: [G, O/G, I/G, kh, kw] -> [O, ...]
    bias = read(F.zeros(kernel.shape[0]) if conv.bias is None else conv.bias)
    return LinearMap(kernel, bias.reshape(-1))


def identity(channels: int, groups: int, read: Read) -> LinearMap:
    """Return the map from [N, channels, H, W] to itself, as a 1x1 kernel in `groups` groups."""
    width = channels // groups
    kernel = np.eye(width, dtype=np.float32)[np.arange(channels) % width]  # [O, I/groups]
    return LinearMap(read(mge.Tensor(kernel[:, :, None, None])), read(F.zeros(channels)))


def batch_norm(linear: LinearMap, bn: M.BatchNorm2d, read: Read) -> LinearMap:
    """Return `linear` followed by `bn` in evaluation mode.

    That is (x - mean) / sqrt(var + eps) * scale + shift for each output channel x of `linear`.
    """
    gain, shift = _gain_and_shift(bn, read)
    kernel, bias = scaled(linear, gain)
    return LinearMap(kernel, bias + shift)


def scaled(linear: LinearMap, factors: Numbers) -> LinearMap:
    """Return `linear` with its output channels multiplied by `factors`, as many numbers."""
    gains = factors.reshape(-1, 1, 1, 1)
    if isinstance(linear.kernel, np.ndarray):
        kernel = np.multiply(linear.kernel, gains, out=linear.kernel)
    else:
        kernel = linear.kernel * gains
    return LinearMap(kernel, linear.bias * factors.reshape(-1))


def negative(linear: LinearMap) -> LinearMap:
    """Return `linear` times -1, for a branch that is subtracted."""
    return LinearMap(-linear.kernel, -linear.bias)


def add(*branches: LinearMap) -> LinearMap:
    """Return the sum of branches; smaller kernels are centred in the largest one."""
    largest = max(branches, key=lambda branch: branch.kernel.shape[2:])
    kernel = largest.kernel
    for branch in branches:
        if branch is not largest:
            kernel = _add_centred(kernel, branch.kernel)
    return LinearMap(kernel, sum(branch.bias for branch in branches))


def _add_centred(kernel: Numbers, smaller: Numbers) -> Numbers:
    """Add `smaller` [O, I, h, w] to the centre of `kernel` [O, I, H, W], in place for arrays."""
    (height, width), (h, w) = kernel.shape[2:], smaller.shape[2:]
    top, left = (height - h) // 2, (width - w) // 2
    if isinstance(kernel, np.ndarray):
        kernel[:, :, top : top + h, left : left + w] += smaller
        return kernel
    # by a matrix product: F.nn.pad takes 20 times as long on a CPU
    places = np.zeros((h, w, height, width), np.float32)
    np.einsum("hwhw->hw", places[:, :, top : top + h, left : left + w])[...] = 1
    placed = F.matmul(smaller.reshape(-1, h * w), mge.Tensor(places.reshape(h * w, -1)))
    return kernel + placed.reshape(kernel.shape)


def linear(layer: M.Linear, read: Read) -> LinearMap:
    """Return the map of a linear layer: kernel [O, I], bias [O].

    Raises TypeError for a Module of another kind.
    """
    if not isinstance(layer, M.Linear):
        raise TypeError(
            f"the last batch norm is fused with the classifier, but that is a "
            f"{type(layer).__name__} and no Linear; fuse the network before replacing it"
        )
    bias = F.zeros(layer.out_features) if layer.bias is None else layer.bias
    return LinearMap(read(layer.weight), read(bias))


def batch_norm_before(bn: M.Module, after: LinearMap, read: Read) -> LinearMap:
    """Return `bn` in evaluation mode followed by a linear layer or a 1x1 convolution."""
    gain, shift = _gain_and_shift(bn, read)
    weight = after.kernel.reshape(*after.kernel.shape[:2])  # without 1x1
    kernel = (weight * gain).reshape(*after.kernel.shape)
    return LinearMap(kernel, after.bias + weight @ shift)


def mean(*maps: LinearMap) -> LinearMap:
    """Return the mean of linear layers."""
    kernels, biases = zip(*maps, strict=True)
    return LinearMap(sum(kernels) / len(maps), sum(biases) / len(maps))


def to_linear(linear: LinearMap, like: M.Linear) -> M.Linear:
    """Return the layer that computes `linear`; its class, dtype and mode are those of `like`."""
    with init.uninitialized():
        layer = type(like)(like.in_features, like.out_features)
    layer.weight = _parameter(linear.kernel, layer.weight.shape, like.weight.dtype)
    layer.bias = _parameter(linear.bias, layer.bias.shape, like.weight.dtype)
    layer.train(like.training)
    return layer


def to_conv2d(linear: LinearMap, like: M.Conv2d) -> M.Conv2d:
    """Return the convolution that computes `linear`.

    Its class, stride, groups, dtype and mode are those of `like`.
    """
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
    """Return a new Module in deploy form that computes what `model` computes in evaluation mode.

    `model` may be a network, a single block or any Module that contains blocks, and is not changed:
    in a copy of it, each Module with a `fuse_in_place` method fuses itself. Fusing a Module in
    deploy form again gives an equal one.
    """
    originals = _tensors(model)
    deployed = _copy(model, originals)  # most of which will be dropped
    fuse_in_place(deployed)
    new = {key: tensor for key, tensor in _tensors(deployed).items() if key not in originals}
    return _copy(deployed, new)


def _tensors(model: M.Module) -> dict[int, mge.Tensor]:
    """Return all tensors of a Module by identity."""
    return {id(t): t for t in (*model.parameters(), *model.buffers())}


def _copy(model: M.Module, shared: dict[int, mge.Tensor]) -> M.Module:
    """Return a copy of a Module that shares these of its tensors, by identity, with it."""
    return copy.deepcopy(model, shared.copy())


def fuse_in_place(model: M.Module, read: Read = float64) -> None:
    """Bring `model` itself into deploy form, block by block, to save the memory of a copy."""
    # a list of these alone, so that the branches are freed as they are fused
    for module in [module for module in model.modules() if hasattr(module, "fuse_in_place")]:
        module.fuse_in_place(read)
        mge._full_sync()  # what MegEngine has queued, it has not freed


def unrounded_weights(model: M.Module) -> dict[str, np.ndarray]:
    """Return the fused weights of `model`'s deploy form by name, in float64 before rounding.

    Weights that fusion does not change are left out.
    """
    return {k: v for k, v in _fused(model, exact).items() if isinstance(v, Exact)}


def fused_weights(model: M.Module) -> dict[str, mge.Tensor]:
    """Return the tensors of `model`'s deploy form by name, as functions of its parameters.

    Gradients flow through them to the branches; batch norms use their running statistics, as in
    evaluation mode. Computed in float32, they differ from those of `to_deploy` in the last bits.
    Source: RepQ, BMVC 2023 (arXiv 2311.05317).
    """
    return {k: v for k, v in _fused(model, differentiable).items() if isinstance(v, mge.Tensor)}


def _fused(model: M.Module, read: Read) -> dict[str, Any]:
    """Return what the modules of `model`'s deploy form have as weight and bias, by name."""
    deployed = _copy(model, _tensors(model))
    fuse_in_place(deployed, read)
    return {
        f"{path}.{name}": getattr(module, name, None)
        for path, module in deployed.named_modules()
        for name in ("weight", "bias")
    }


def gain_and_shift(
    scale: Numbers, shift: Numbers, average: Numbers, variance: Numbers, eps: float
) -> tuple[Numbers, Numbers]:
    """Return gain and shift, [C] each, of a batch norm in evaluation mode: x * gain + shift.

    Arrays are computed with in float64, tensors in their own dtype.
    """
    scale, shift, average, variance = (
        (x if isinstance(x, mge.Tensor) else x.astype(np.float64)).reshape(-1)
        for x in (scale, shift, average, variance)
    )
    with np.errstate(invalid="ignore"):  # a negative variance makes NaN
        gain = scale / (variance + eps) ** 0.5
    return gain, shift - average * gain


def _gain_and_shift(bn: M.Module, read: Read) -> tuple[Numbers, Numbers]:
    if bn.running_mean is None:
        raise ValueError(
            f"a {type(bn).__name__} has track_running_stats=False, but only one with running "
            "statistics can be fused; make it with them, or leave its block in train form"
        )
    weight = F.ones_like(bn.running_mean) if bn.weight is None else bn.weight
    bias = F.zeros_like(bn.running_mean) if bn.bias is None else bn.bias
    scale, shift, average, variance = map(read, (weight, bias, bn.running_mean, bn.running_var))
    return gain_and_shift(scale, shift, average, variance, bn.eps)


def _parameter(numbers: Numbers, shape: tuple[int, ...], dtype: np.dtype) -> mge.Tensor:
    numbers = numbers.reshape(shape)
    if type(numbers) is np.ndarray:
        return mge.Parameter(numbers.astype(dtype))
    return numbers  # a function of other parameters, or exact
