"""Layers that several families use."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np

from . import cpu, init, reparam
from .reparameterizable import Reparameterizable

if TYPE_CHECKING:  # what the mixin _BatchNorm is mixed into
    from megengine.module import BatchNorm2d as _MixedInto
else:
    _MixedInto = object


class Conv2d(M.Conv2d):
    """MegEngine's convolution, trained with the operators of cpu/ where there is no GPU.

    Initialized as in BaseCls: normal with std sqrt(2 / fan_out of a group).
    """

    def calc_conv(self, inp: mge.Tensor, weight: mge.Tensor, bias: mge.Tensor | None) -> mge.Tensor:
        if isinstance(inp, cpu.Symbol):
            return inp.convolution(self, weight, bias)
        # where MegEngine's forward pass is slow
        slow = (
            inp.shape[2] * inp.shape[3] <= cpu.SMALL_MAP or self.kernel_size[0] > cpu.SMALL_KERNEL
        )
        plain = self.padding_mode == "zeros" and tuple(self.dilation) == (1, 1)
        learns = bias is not None and cpu.is_recorded(bias)
        if not (plain and cpu.is_used() and (self.training or slow or learns)):
            return super().calc_conv(inp, weight, bias)
        y = cpu.conv2d(inp, weight, self.stride, self.padding, self.groups)
        return y if bias is None else cpu.add_bias(y, bias)

    def reset_parameters(self) -> None:
        height, width = self.kernel_size
        fan_out = self.out_channels // self.groups * height * width
        init.normal(self.weight, math.sqrt(2 / fan_out))
        if self.bias is not None:
            M.init.zeros_(self.bias)


class _BatchNorm(_MixedInto):
    """Training with the operators of cpu/ where there is no GPU, added to MegEngine's batch norms.

    Their eps is 1e-5, and their momentum 0.9 is the weight of the old statistics (0.1 in PyTorch).

    Attributes:
        all_reduce: a function that sums a tensor over several processes, which then share their
            statistics; None for statistics of this process alone.
    """

    all_reduce: Callable[[mge.Tensor], mge.Tensor] | None = None

    def forward(self, inp: mge.Tensor) -> mge.Tensor:
        if isinstance(inp, cpu.Symbol):
            return inp.batch_norm(self)
        usual = self.affine and self.track_running_stats and not self.freeze
        learns = usual and cpu.is_recorded(self.weight, self.bias)
        if learns and not self.training and cpu.is_used():
            return self._with_fixed_statistics(inp)
        if not self.training or not usual or not (cpu.is_used() or self.all_reduce):
            return super().forward(inp)
        if not cpu.is_used():
            arguments = (self.running_mean, self.running_var, self.weight, self.bias)
            return F.nn.sync_batch_norm(inp, *arguments, True, self.momentum, self.eps)
        return cpu.batch_norm(
            inp,
            self.weight,
            self.bias,
            self.running_mean,
            self.running_var,
            self.momentum,
            self.eps,
            self.all_reduce,
        )

    def _with_fixed_statistics(self, inp: mge.Tensor) -> mge.Tensor:
        """Compute as in evaluation, with gradients that are right: see cpu.add_bias."""
        gain = self.weight / F.sqrt(self.running_var + self.eps)
        shift = self.bias - self.running_mean * gain
        maps = inp.reshape(*inp.shape, 1, 1) if inp.ndim == 2 else inp
        return cpu.add_bias(cpu.scale_channels(maps, gain), shift).reshape(inp.shape)


class BatchNorm1d(_BatchNorm, M.BatchNorm1d):
    """Batch norm over the rows of [N, C]."""


class BatchNorm2d(_BatchNorm, M.BatchNorm2d):
    """Batch norm over images and positions of [N, C, H, W]."""


class ConvBN(M.Module):
    """A convolution without bias and its batch norm.

    [N, I, H, W] -> [N, O, ceil(H/stride), ceil(W/stride)] for kernels of odd size.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
    ):
        super().__init__()
        self.conv = Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.bn = BatchNorm2d(out_channels)

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return self.bn(self.conv(x))

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        """Return both as one convolution, as they compute in evaluation mode."""
        return reparam.batch_norm(reparam.convolution(self.conv, read), self.bn, read)


class FusibleConvBN(Reparameterizable):
    """A convolution and its batch norm that are one convolution with bias in deploy form.

    For use outside of a block with branches; in a block they are a ConvBN. Shapes as in ConvBN.
    """

    branch_names = ("conv", "bn")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        deploy: bool = False,
    ):
        super().__init__()
        shape = (in_channels, out_channels, kernel_size, stride, kernel_size // 2)
        if deploy:
            self.reparam = Conv2d(*shape, groups=groups)
        else:
            self.conv = Conv2d(*shape, groups=groups, bias=False)
            self.bn = BatchNorm2d(out_channels)
        self.out_channels = out_channels

    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        return self.bn(self.conv(x))

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        return reparam.batch_norm(reparam.convolution(self.conv, read), self.bn, read)

    def main_convolution(self) -> Conv2d:
        return self.conv


class LargeKernel(Reparameterizable):
    """A convolution with a large kernel and one with a small kernel, each with its batch norm.

    The small one makes the large one easier to train; in deploy form both are one convolution with
    bias. [N, I, H, W] -> [N, O, ceil(H/stride), ceil(W/stride)] for kernels of odd size.
    Source: Ding et al., Scaling Up Your Kernels to 31x31, CVPR 2022 (arXiv 2203.06717).
    """

    branch_names = ("large", "small")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        small_kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        deploy: bool = False,
    ):
        super().__init__()
        shape = (in_channels, out_channels)
        if deploy:
            self.reparam = Conv2d(*shape, kernel_size, stride, kernel_size // 2, groups=groups)
        else:
            self.large = ConvBN(*shape, kernel_size, stride, groups)
            self.small = ConvBN(*shape, small_kernel_size, stride, groups)

    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        return self.large(x) + self.small(x)

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        return reparam.add(self.large.linear_map(read), self.small.linear_map(read))

    def main_convolution(self) -> Conv2d:
        return self.large.conv


def round_channels(channels: float, divisor: int) -> int:
    """Round to the nearest positive multiple of `divisor`, or up if that loses over a tenth."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SqueezeExcitation(M.Module):
    """Scaling of each channel by a gate that is computed from all channels' means.

    [N, C, H, W] -> same shape. `gate` is a function with values from 0 to 1.
    Source: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018.
    """

    def __init__(
        self, channels: int, hidden: int, gate: Callable[[mge.Tensor], mge.Tensor] | None = None
    ):
        super().__init__()
        self.gate = sigmoid if gate is None else gate
        self.down = Conv2d(channels, hidden, 1)
        self.up = Conv2d(hidden, channels, 1)
        init.normal(self.up.weight, 0.01)  # all gates start alike, or they hide what the image is

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        gate = mean(x)  # [N, C, H, W] -> [N, C, 1, 1]
        return x * self.gate(self.up(relu(self.down(gate))))


class DropPath(M.Module):
    """The end of a residual branch, which training can leave out for some images of a batch.

    [N, C, H, W] -> same shape. Source: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016
    (arXiv 1603.09382).

    Attributes:
        factors: float32 [N], what the branch of each image is multiplied by; None, as outside of
            a training step: nothing. They are given rather than drawn here, so that computing a
            block again gives the same map.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factors: np.ndarray | None = None

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        if self.factors is None:
            return x
        return x * mge.Tensor(self.factors.reshape(-1, 1, 1, 1))


class Linear(M.Linear):
    """MegEngine's linear layer, initialized as classifiers are: normal with std 0.01."""

    def reset_parameters(self) -> None:
        init.normal(self.weight, 0.01)
        M.init.zeros_(self.bias)


def relu(x: mge.Tensor) -> mge.Tensor:
    """Return max(x, 0)."""
    if isinstance(x, cpu.Symbol):
        return x.activation("relu")
    return cpu.relu(x) if cpu.is_used() else F.relu(x)


def scale_channels(x: mge.Tensor, factors: mge.Parameter) -> mge.Tensor:
    """Return x times a factor for each channel: [N, C, H, W] * [C, 1, 1] -> [N, C, H, W]."""
    if isinstance(x, cpu.Symbol) or not cpu.is_used():
        return x * factors
    return cpu.scale_channels(x, factors)


def gelu(x: mge.Tensor) -> mge.Tensor:
    """Return x times the normal distribution's probability of at most x."""
    return x.activation("gelu") if isinstance(x, cpu.Symbol) else F.gelu(x)


def sigmoid(x: mge.Tensor) -> mge.Tensor:
    """Return 1 / (1 + exp(-x))."""
    return x.activation("sigmoid") if isinstance(x, cpu.Symbol) else F.sigmoid(x)


def hard_sigmoid(x: mge.Tensor) -> mge.Tensor:
    """Return x / 6 + 1 / 2, limited to 0 and 1."""
    return x.activation("hard_sigmoid") if isinstance(x, cpu.Symbol) else F.hsigmoid(x)


def mean(x: mge.Tensor) -> mge.Tensor:
    """Return the mean over the map: [N, C, H, W] -> [N, C, 1, 1]."""
    return x.mean_over_map() if isinstance(x, cpu.Symbol) else F.mean(x, axis=(2, 3), keepdims=True)


def global_average_pool(x: mge.Tensor) -> mge.Tensor:
    """Return the mean over the map: [N, C, H, W] -> [N, C]."""
    return F.mean(x, axis=(2, 3))
