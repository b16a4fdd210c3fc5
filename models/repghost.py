"""RepGhost: ghost modules whose second half is a depthwise convolution beside a batch norm.

Source: Chen et al., RepGhost: A Hardware-Efficient Ghost Module via Re-parameterization, 2022
(arXiv 2211.06088); rows and rounding from the repository ChengpengChen/RepGhost.
"""

from __future__ import annotations

import megengine as mge
import megengine.functional as F
import megengine.module as M

from . import init, reparam
from .layers import (
    BatchNorm2d,
    Conv2d,
    ConvBN,
    FusibleConvBN,
    Linear,
    SqueezeExcitation,
    hard_sigmoid,
    mean,
    relu,
    round_channels,
)
from .reparameterizable import Reparameterizable
from .staged import StagedClassifier

VARIANTS = {
    "RepGhost050": {"width": 0.5},
    "RepGhost058": {"width": 0.58},
    "RepGhost080": {"width": 0.8},
    "RepGhost100": {"width": 1.0},
    "RepGhost111": {"width": 1.11},
    "RepGhost130": {"width": 1.3},
    "RepGhost150": {"width": 1.5},
    "RepGhost200": {"width": 2.0},
}

# For each bottleneck: kernel size of its strided convolutions, middle channels, output channels,
# squeeze-and-excitation, stride.
_ROWS = (
    ((3, 8, 16, False, 1),),
    ((3, 24, 24, False, 2),),
    ((3, 36, 24, False, 1),),
    ((5, 36, 40, True, 2),),
    ((5, 60, 40, True, 1),),
    ((3, 120, 80, False, 2),),
    (
        (3, 100, 80, False, 1),
        (3, 120, 80, False, 1),
        (3, 120, 80, False, 1),
        (3, 240, 112, True, 1),
        (3, 336, 112, True, 1),
    ),
    ((5, 336, 160, True, 2),),
    (
        (5, 480, 160, False, 1),
        (5, 480, 160, True, 1),
        (5, 480, 160, False, 1),
        (5, 480, 160, True, 1),
    ),
)

# Arguments of every kind of block, to be verified alone.
BLOCKS = {
    "ghost, ReLU": {"in_channels": 16, "out_channels": 24, "activate": True},
    "ghost, linear": {"in_channels": 16, "out_channels": 24, "activate": False},
}
BOTTLENECKS = {
    "bottleneck": {"in_channels": 16, "middle": 24, "out_channels": 16, "kernel_size": 3},
    "bottleneck, stride 2, SE": {
        "in_channels": 16,
        "middle": 24,
        "out_channels": 32,
        "kernel_size": 5,
        "se": True,
        "stride": 2,
    },
    "bottleneck, wider": {"in_channels": 16, "middle": 24, "out_channels": 32, "kernel_size": 3},
}


class GhostModule(Reparameterizable):
    """A 1x1 convolution, then a depthwise 3x3 one with a batch norm beside it in train form.

    x1 = ReLU(BN(conv1x1(x))), y = ReLU(BN(depthwise3x3(x1)) + BN(x1)); without `activate` there is
    no ReLU. [N, I, H, W] -> [N, O, H, W].
    """

    branch_names = ("dense", "identity")

    def __init__(
        self, in_channels: int, out_channels: int, activate: bool = True, deploy: bool = False
    ):
        super().__init__()
        self.primary = FusibleConvBN(in_channels, out_channels, 1, deploy=deploy)
        if deploy:
            self.reparam = Conv2d(out_channels, out_channels, 3, 1, 1, groups=out_channels)
        else:
            self.dense = ConvBN(out_channels, out_channels, 3, groups=out_channels)
            self.identity = BatchNorm2d(out_channels)
        self.activate = activate

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        x = self.primary(x)
        if self.activate:
            x = relu(x)
        x = super().forward(x)
        return relu(x) if self.activate else x

    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        return self.dense(x) + self.identity(x)

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        conv = self.dense.conv
        unchanged = reparam.identity(conv.in_channels, conv.groups, read)
        norm = reparam.batch_norm(unchanged, self.identity, read)
        return reparam.add(self.dense.linear_map(read), norm)

    def main_convolution(self) -> Conv2d:
        return self.dense.conv


class Bottleneck(M.Module):
    """Two ghost modules and a shortcut: [N, I, H, W] -> [N, O, ceil(H/stride), ceil(W/stride)].

    Args:
        in_channels: number of channels of the input.
        middle: number of channels between the two ghost modules.
        out_channels: number of channels of the output.
        kernel_size: size of the kernels of the depthwise convolutions with the stride.
        se: squeeze-and-excitation with a hard sigmoid between the modules.
        stride: 1 or 2.
        deploy: build the fused form.
    """

    def __init__(
        self,
        in_channels: int,
        middle: int,
        out_channels: int,
        kernel_size: int,
        se: bool = False,
        stride: int = 1,
        deploy: bool = False,
    ):
        super().__init__()
        self.depthwise = self.se = self.shortcut = None
        self.ghost1 = GhostModule(in_channels, middle, deploy=deploy)
        if stride > 1:
            self.depthwise = FusibleConvBN(middle, middle, kernel_size, stride, middle, deploy)
        if se:
            self.se = SqueezeExcitation(middle, round_channels(middle * 0.25, 4), gate=hard_sigmoid)
        self.ghost2 = GhostModule(middle, out_channels, activate=False, deploy=deploy)
        if not deploy:
            init.small_residual(self.ghost2.dense.bn, self.ghost2.identity)
        if in_channels != out_channels or stride > 1:
            self.shortcut = M.Sequential(
                FusibleConvBN(in_channels, in_channels, kernel_size, stride, in_channels, deploy),
                FusibleConvBN(in_channels, out_channels, 1, deploy=deploy),
            )

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        y = self.ghost1(x)
        if self.depthwise is not None:
            y = self.depthwise(y)
        if self.se is not None:
            y = self.se(y)
        return self.ghost2(y) + (x if self.shortcut is None else self.shortcut(x))


class RepGhost(StagedClassifier):
    """A RepGhost classifier: [N, in_chans, H, W] -> logits [N, num_classes], for any H and W.

    Args:
        width: multiplier of all channels.
        num_classes: length of the logits.
        stride: total stride, 8, 16 or 32.
        deploy: build the fused form.
        in_chans: number of channels of the images.
    """

    dropout = 0.2

    def __init__(
        self,
        width: float,
        num_classes: int = 1000,
        stride: int = 32,
        deploy: bool = False,
        in_chans: int = 3,
    ):
        super().__init__(stride)
        self.num_classes, self.in_chans = num_classes, in_chans
        channels = round_channels(16 * width, 4)
        self.stem = FusibleConvBN(in_chans, channels, 3, self.down_samplings[0], deploy=deploy)
        stages: list[list[Bottleneck]] = [[]]
        for row in (row for rows in _ROWS for row in rows):
            kernel_size, *widths, se, down = row
            middle, out_channels = (round_channels(c * width, 4) for c in widths)
            block_stride = 1
            if down > 1:
                block_stride = self.down_samplings[len(stages)]
                stages.append([])
            stages[-1].append(
                Bottleneck(channels, middle, out_channels, kernel_size, se, block_stride, deploy)
            )
            channels = out_channels
        for i, blocks in enumerate(stages):
            setattr(self, f"stage{i}", M.Sequential(*blocks))
        self.num_features = tuple(blocks[-1].ghost2.primary.out_channels for blocks in stages[1:])
        last = round_channels(960 * width, 4)
        self.last = FusibleConvBN(channels, last, 1, deploy=deploy)
        self.head = Conv2d(last, 1280, 1)
        self.drop = M.Dropout(self.dropout)
        self.linear = Linear(1280, num_classes)

    def before_stages(self, x: mge.Tensor) -> mge.Tensor:
        """Compute the stem and the blocks at its stride."""
        return self.stage0(relu(self.stem(x)))

    def classify(self, x: mge.Tensor) -> mge.Tensor:
        """Compute the logits from the last map."""
        x = relu(self.last(x))
        x = F.flatten(relu(self.head(mean(x))), 1)  # [N, C, H, W] -> [N, 1280]
        return self.linear(self.drop(x))
