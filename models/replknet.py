"""RepLKNet: depthwise kernels of up to 31x31, trained with a 5x5 kernel beside each.

Source: Ding et al., Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs, CVPR
2022 (arXiv 2203.06717); structure and names of the variants from MegEngine/RepLKNet
and DingXiaoH/RepLKNet-pytorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import megengine as mge
import megengine.module as M

from . import reparam
from .layers import BatchNorm2d, Conv2d, DropPath, FusibleConvBN, LargeKernel, Linear, gelu, relu
from .reparameterizable import Reparameterizable
from .staged import StagedClassifier

SMALL_KERNEL = 5

VARIANTS: dict[str, dict[str, Any]] = {
    "RepLKNet31B": {"channels": (128, 256, 512, 1024)},
    "RepLKNet31L": {"channels": (192, 384, 768, 1536)},
}

# Arguments of every kind of block, to be verified alone.
BLOCKS = {
    "block, 31x31": {"channels": 8, "kernel_size": 31},
    "block, 13x13": {"channels": 16, "kernel_size": 13},
}
LARGE_KERNELS = {  # without a ReLU, which hides errors of single taps
    "large kernel, 27x27": {
        "in_channels": 8,
        "out_channels": 8,
        "kernel_size": 27,
        "small_kernel_size": SMALL_KERNEL,
        "groups": 8,
    }
}
TRANSITIONS = {"transition": {"in_channels": 16, "out_channels": 32}}


class NormConvBN(Reparameterizable):
    """BN(conv1x1(BN(x))), one convolution in deploy form: [N, I, H, W] -> [N, O, H, W]."""

    branch_names = ("norm", "conv", "bn")

    def __init__(self, in_channels: int, out_channels: int, deploy: bool = False):
        super().__init__()
        if deploy:
            self.reparam = Conv2d(in_channels, out_channels, 1)
        else:
            self.norm = BatchNorm2d(in_channels)
            self.conv = Conv2d(in_channels, out_channels, 1, bias=False)
            self.bn = BatchNorm2d(out_channels)

    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        return self.bn(self.conv(self.norm(x)))

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        conv = reparam.batch_norm_before(self.norm, reparam.convolution(self.conv, read), read)
        return reparam.batch_norm(conv, self.bn, read)

    def main_convolution(self) -> Conv2d:
        return self.conv


class RepLKNetBlock(M.Module):
    """A large kernel between two 1x1 convolutions, then a feed-forward network, each added to x.

    y = x + BN(conv1x1(ReLU(large(ReLU(BN(conv1x1(BN(x)))))))) and
    y + BN(conv1x1(GELU(BN(conv1x1(BN(y)))))) with 4 C channels inside. [N, C, H, W] -> same shape.
    """

    def __init__(self, channels: int, kernel_size: int, deploy: bool = False):
        super().__init__()
        self.enter = NormConvBN(channels, channels, deploy)
        self.spread = LargeKernel(
            channels, channels, kernel_size, SMALL_KERNEL, groups=channels, deploy=deploy
        )
        self.leave = FusibleConvBN(channels, channels, 1, deploy=deploy)
        self.expand = NormConvBN(channels, 4 * channels, deploy)
        self.project = FusibleConvBN(4 * channels, channels, 1, deploy=deploy)
        self.drop_spread, self.drop_project = DropPath(), DropPath()
        if not deploy:  # the block starts as the identity
            M.init.zeros_(self.leave.bn.weight)
            M.init.zeros_(self.project.bn.weight)

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        x = x + self.drop_spread(self.leave(relu(self.spread(relu(self.enter(x))))))
        return x + self.drop_project(self.project(gelu(self.expand(x))))


class Transition(M.Module):
    """A 1x1 convolution, then a depthwise 3x3 one with stride 2, each with ReLU.

    [N, I, H, W] -> [N, O, ceil(H/2), ceil(W/2)].
    """

    def __init__(self, in_channels: int, out_channels: int, deploy: bool = False):
        super().__init__()
        self.widen = FusibleConvBN(in_channels, out_channels, 1, deploy=deploy)
        self.depthwise = FusibleConvBN(out_channels, out_channels, 3, 2, out_channels, deploy)

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return relu(self.depthwise(relu(self.widen(x))))


class RepLKNet(StagedClassifier):
    """A RepLKNet classifier: [N, in_chans, H, W] -> logits [N, num_classes], for any H and W.

    Args:
        channels: number of channels in each of the four stages.
        depths: number of blocks in each stage.
        kernel_sizes: size of the large kernels in each stage.
        num_classes: length of the logits.
        stride: total stride, 8, 16 or 32.
        deploy: build the fused form.
        in_chans: number of channels of the images.
    """

    check_size = 224
    norm: M.Module  # None in deploy form, where it is part of `linear`

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int] = (2, 2, 18, 2),
        kernel_sizes: Sequence[int] = (31, 29, 27, 13),
        num_classes: int = 1000,
        stride: int = 32,
        deploy: bool = False,
        in_chans: int = 3,
    ):
        super().__init__(stride)
        self.num_features = tuple(channels)
        self.num_classes, self.in_chans = num_classes, in_chans
        first, last = channels[0], channels[-1]
        down1, down2, *_ = self.down_samplings
        self.stage0 = M.Sequential(
            FusibleConvBN(in_chans, first, 3, down1, deploy=deploy),
            FusibleConvBN(first, first, 3, groups=first, deploy=deploy),
            FusibleConvBN(first, first, 1, deploy=deploy),
            FusibleConvBN(first, first, 3, down2, first, deploy),
        )
        stages = zip(channels, depths, kernel_sizes, strict=True)
        for stage, (width, depth, kernel_size) in enumerate(stages, 1):
            blocks: list[M.Module] = []
            if stage > 1:
                blocks.append(Transition(channels[stage - 2], width, deploy))
            blocks += [RepLKNetBlock(width, kernel_size, deploy) for _ in range(depth)]
            setattr(self, f"stage{stage}", M.Sequential(*blocks))
        self.norm = None if deploy else BatchNorm2d(last)
        self.linear = Linear(last, num_classes)

    def before_stages(self, x: mge.Tensor) -> mge.Tensor:
        """Compute the stem."""
        for conv in self.stage0:
            x = relu(conv(x))
        return x

    def classify(self, x: mge.Tensor) -> mge.Tensor:
        """Compute the logits from the last map."""
        return super().classify(x if self.norm is None else self.norm(x))

    def fuse_in_place(self, read: reparam.Read = reparam.float64) -> None:
        """Fold the last batch norm into the linear layer; the blocks fuse themselves."""
        if self.norm is not None:
            linear = reparam.batch_norm_before(self.norm, reparam.linear(self.linear, read), read)
            self.linear = reparam.to_linear(linear, like=self.linear)
            self.norm = None
