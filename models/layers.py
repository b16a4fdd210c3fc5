"""Layers that the families share."""

from __future__ import annotations

import math
from collections.abc import Callable

import megengine as mge
import megengine.functional as F
import megengine.module as M

from . import cpu, init, reparam
from .reparameterizable import Reparameterizable


class Conv2d(M.Conv2d):
    """MegEngine's convolution, trained by the operators in cpu.py where there is no GPU.

    Initialized as BaseCls does: normal, std sqrt(2 / fan_out per group).
    """

    def calc_conv(self, inp: mge.Tensor, weight: mge.Tensor, bias: mge.Tensor | None) -> mge.Tensor:
        small = inp.shape[2] * inp.shape[3] <= cpu.SMALL_MAP  # stock's forward is slow there too
        if not (cpu.is_used() and (self.training or small)):
            return super().calc_conv(inp, weight, bias)
        y = cpu.conv2d(inp, weight, self.stride, self.padding, self.groups)
        return y if bias is None else cpu.add_bias(y, bias)

    def reset_parameters(self) -> None:
        height, width = self.kernel_size
        fan_out = self.out_channels // self.groups * height * width
        init.normal(self.weight, math.sqrt(2 / fan_out))
        if self.bias is not None:
            M.init.zeros_(self.bias)


class _BatchNorm:
    """What the batch norms below add to MegEngine's (eps 1e-5, momentum 0.9 of the old value:
    PyTorch's 0.1): training by the operators in cpu/ where there is no GPU, and `all_reduce`, a
    function that sums a tensor over several processes, for statistics over all of them."""

    all_reduce: Callable[[mge.Tensor], mge.Tensor] | None = None

    def forward(self, inp: mge.Tensor) -> mge.Tensor:
        if not self.training or self.freeze or not (cpu.is_used() or self.all_reduce):
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


class BatchNorm1d(_BatchNorm, M.BatchNorm1d):
    """Of [N, C]."""


class BatchNorm2d(_BatchNorm, M.BatchNorm2d):
    """Of [N, C, H, W]."""


class ConvBN(M.Module):
    """A convolution without bias and its batch norm: [N, I, H, W] -> [N, O, H/stride, W/stride]."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride=1, groups=1):
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
        """The one convolution that the two amount to in evaluation mode."""
        return reparam.batch_norm(reparam.convolution(self.conv, read), self.bn, read)


class FusibleConvBN(Reparameterizable):
    """A ConvBN outside of any block of branches; one convolution with bias in deploy form."""

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


def round_channels(channels: float, divisor: int) -> int:
    """To a multiple of `divisor`, at least one of it and not below nine tenths of `channels`."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * channels else rounded


class SqueezeExcitation(M.Module):
    """Scales each channel by a gate computed from the channels' means: [N, C, H, W] -> same.

    `gate` squashes to 0 to 1. Source: Hu et al., Squeeze-and-Excitation Networks, CVPR 2018.
    """

    def __init__(self, channels: int, hidden: int, gate: Callable = F.sigmoid):
        super().__init__()
        self.gate = gate
        self.down = Conv2d(channels, hidden, 1)
        self.up = Conv2d(hidden, channels, 1)

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        gate = F.mean(x, axis=(2, 3), keepdims=True)  # [N, C, H, W] -> [N, C, 1, 1]
        return x * self.gate(self.up(relu(self.down(gate))))


class Linear(M.Linear):
    """MegEngine's linear layer, initialized as classifiers are: normal with std 0.01."""

    def reset_parameters(self) -> None:
        init.normal(self.weight, 0.01)
        M.init.zeros_(self.bias)


def relu(x: mge.Tensor) -> mge.Tensor:
    """max(x, 0)."""
    return cpu.relu(x) if cpu.is_used() else F.relu(x)


def global_average_pool(x: mge.Tensor) -> mge.Tensor:
    """Mean over the map, whatever its size: [N, C, H, W] -> [N, C]."""
    return F.mean(x, axis=(2, 3))
