"""MobileOne: depthwise and pointwise convolutions, each trained as a sum of several branches.

Source: Vasu et al., MobileOne: An Improved One millisecond Mobile Backbone, CVPR 2023
(arXiv 2206.04040); structure and names of the variants from the repository apple/ml-mobileone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import megengine as mge
import megengine.module as M

from . import init, reparam
from .layers import BatchNorm2d, Conv2d, ConvBN, Linear, SqueezeExcitation, relu
from .reparameterizable import Reparameterizable
from .staged import StagedClassifier

# width: multipliers of 64, 128, 256 and 512 channels; branches: k x k convolutions per unit
VARIANTS: dict[str, dict[str, Any]] = {
    "MobileOneS0": {"width": (0.75, 1, 1, 2), "branches": 4},
    "MobileOneS1": {"width": (1.5, 1.5, 2, 2.5)},
    "MobileOneS2": {"width": (1.5, 2, 2.5, 4)},
    "MobileOneS3": {"width": (2, 2.5, 3, 4)},
    "MobileOneS4": {"width": (3, 3.5, 3.5, 4), "se": True},
}

# Arguments of every kind of unit, to be verified alone.
BLOCKS = {
    "depthwise": {"in_channels": 16, "out_channels": 16, "kernel_size": 3, "groups": 16},
    "depthwise, stride 2": {
        "in_channels": 16,
        "out_channels": 16,
        "kernel_size": 3,
        "stride": 2,
        "groups": 16,
    },
    "depthwise, 4 branches, SE": {
        "in_channels": 16,
        "out_channels": 16,
        "kernel_size": 3,
        "groups": 16,
        "branches": 4,
        "se": True,
    },
    "pointwise": {"in_channels": 16, "out_channels": 16, "kernel_size": 1},
    "pointwise, wider, 4 branches": {
        "in_channels": 16,
        "out_channels": 32,
        "kernel_size": 1,
        "branches": 4,
    },
    "stem": {"in_channels": 3, "out_channels": 16, "kernel_size": 3, "stride": 2},
}


class MobileOneUnit(Reparameterizable):
    """ReLU of a sum of branches in train form, ReLU(convolution with bias) in deploy form.

    The branches are several k x k convolutions, a 1x1 convolution if k is more than 1, and the
    identity if input and output have the same shape, each followed by a batch norm. [N, I, H, W] ->
    [N, O, ceil(H/stride), ceil(W/stride)].

    Args:
        in_channels, out_channels, kernel_size, stride, groups: as in a convolution.
        branches: number of k x k convolutions.
        se: squeeze-and-excitation with C/16 hidden channels before the activation.
        activation: function in place of the ReLU.
        deploy: build the fused form.
    """

    branch_names = ("dense", "pointwise", "identity")

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        groups: int = 1,
        branches: int = 1,
        se: bool = False,
        activation: Callable[[mge.Tensor], mge.Tensor] = relu,
        deploy: bool = False,
    ):
        super().__init__()
        if deploy:
            padding = kernel_size // 2
            self.reparam = Conv2d(
                in_channels, out_channels, kernel_size, stride, padding, groups=groups
            )
        else:
            shape = (in_channels, out_channels)
            self.dense = M.Sequential(
                *(ConvBN(*shape, kernel_size, stride, groups) for _ in range(branches))
            )
            if kernel_size > 1:
                self.pointwise = ConvBN(*shape, 1, stride, groups)
            if in_channels == out_channels and stride == 1:
                self.identity = BatchNorm2d(in_channels)
        self.se = SqueezeExcitation(out_channels, out_channels // 16) if se else None
        self.activation = activation

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        y = super().forward(x)
        return self.activation(y if self.se is None else self.se(y))

    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        first, *others = self.branches()
        return sum((branch(x) for branch in others), first(x))

    def branches(self) -> list[M.Module]:
        """Return the branches of the train form."""
        others = (self.pointwise, self.identity)
        return [*self.dense, *(branch for branch in others if branch is not None)]

    def start_nearly_linear(self) -> None:
        """Initialize the batch norms so that the untrained unit passes on most of its input.

        Beside an identity branch the convolutions start small. Without one, they start with a
        variance of 1 together, whatever their number, and a shift by one standard deviation keeps
        most of their sum above zero, where the ReLU is linear.
        """
        norms = [branch.bn for branch in self.branches() if branch is not self.identity]
        if self.identity is not None:
            init.small_residual(*norms)
            init.shift_above_zero(self.identity)
            return
        for norm in norms:
            M.init.fill_(norm.weight, 1 / math.sqrt(len(norms)))
        M.init.fill_(norms[0].bias, 1)

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        convolutions = [branch for branch in self.branches() if branch is not self.identity]
        maps = [branch.linear_map(read) for branch in convolutions]
        if self.identity is not None:
            conv = self.dense[0].conv
            unchanged = reparam.identity(conv.in_channels, conv.groups, read)
            maps.append(reparam.batch_norm(unchanged, self.identity, read))
        return reparam.add(*maps)

    def main_convolution(self) -> Conv2d:
        return self.dense[0].conv


class MobileOne(StagedClassifier):
    """A MobileOne classifier: [N, in_chans, H, W] -> logits [N, num_classes], for any H and W.

    Args:
        width: multipliers of the stages' 64, 128, 256 and 512 channels.
        branches: number of k x k convolutions in every unit but the stem's.
        se: squeeze-and-excitation in the last five blocks of stage 3 and in stage 4.
        depths: number of blocks (a depthwise and a pointwise unit) in stages 1 to 4.
        num_classes: length of the logits.
        stride: total stride, 8, 16 or 32.
        deploy: build the fused form.
        in_chans: number of channels of the images.
    """

    def __init__(
        self,
        width: Sequence[float],
        branches: int = 1,
        se: bool = False,
        depths: Sequence[int] = (2, 8, 10, 1),
        num_classes: int = 1000,
        stride: int = 32,
        deploy: bool = False,
        in_chans: int = 3,
    ):
        super().__init__(stride)
        base = (64, 128, 256, 512)
        self.num_features = tuple(int(b * w) for b, w in zip(base, width, strict=True))
        self.num_classes, self.in_chans = num_classes, in_chans
        channels = min(64, self.num_features[0])
        self.stage0 = MobileOneUnit(in_chans, channels, 3, self.down_samplings[0], deploy=deploy)
        all_units = [self.stage0]
        for stage, (depth, out_channels) in enumerate(
            zip(depths, self.num_features, strict=True), 1
        ):
            units = []
            for i in range(depth):
                common: dict[str, Any] = {
                    "branches": branches,
                    "se": se and (stage == 4 or (stage == 3 and i >= depth - 5)),
                    "deploy": deploy,
                }
                down = self.down_samplings[stage] if i == 0 else 1
                units += [
                    MobileOneUnit(channels, channels, 3, down, groups=channels, **common),
                    MobileOneUnit(channels, out_channels, 1, **common),
                ]
                channels = out_channels
            setattr(self, f"stage{stage}", M.Sequential(*units))
            all_units += units
        self.linear = Linear(channels, num_classes)
        if not deploy:
            # With scales 1 and shifts 0, 43 ReLUs without a shortcut erase the image: a linear
            # classifier on the features of an untrained S0 gets 12 % of the digits right, with this
            # initialization 73 %. The last unit is left out: small features are learnt from better.
            for unit in all_units[:-1]:
                unit.start_nearly_linear()
