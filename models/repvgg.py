"""RepVGG: a plain stack of 3x3 convolutions, trained with a 1x1 and an identity branch beside each.

Source: Ding et al., RepVGG: Making VGG-style ConvNets Great Again, CVPR 2021 (arXiv 2101.03697);
structure and names of the variants from the repository DingXiaoH/RepVGG. The variants "-qa" have
the same deploy form but the branches of QARepVGGBlock, whose fused weights lose little in int8.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import megengine as mge
import megengine.functional as F
import megengine.module as M

from . import init, reparam
from .layers import BatchNorm2d, Conv2d, ConvBN, Linear, SqueezeExcitation, relu
from .reparameterizable import Reparameterizable
from .staged import StagedClassifier

_A, _B, _D = (2, 4, 14, 1), (4, 6, 16, 1), (8, 14, 24, 1)  # blocks in stages 1 to 4

# width: multipliers of 64, 128, 256 and 512 channels
VARIANTS: dict[str, dict[str, Any]] = {
    "RepVGGA0": {"depths": _A, "width": (0.75, 0.75, 0.75, 2.5)},
    "RepVGGA1": {"depths": _A, "width": (1, 1, 1, 2.5)},
    "RepVGGA2": {"depths": _A, "width": (1.5, 1.5, 1.5, 2.75)},
    "RepVGGB0": {"depths": _B, "width": (1, 1, 1, 2.5)},
    "RepVGGB1": {"depths": _B, "width": (2, 2, 2, 4)},
    "RepVGGB1g2": {"depths": _B, "width": (2, 2, 2, 4), "groups": 2},
    "RepVGGB1g4": {"depths": _B, "width": (2, 2, 2, 4), "groups": 4},
    "RepVGGB2": {"depths": _B, "width": (2.5, 2.5, 2.5, 5)},
    "RepVGGB2g2": {"depths": _B, "width": (2.5, 2.5, 2.5, 5), "groups": 2},
    "RepVGGB2g4": {"depths": _B, "width": (2.5, 2.5, 2.5, 5), "groups": 4},
    "RepVGGB3": {"depths": _B, "width": (3, 3, 3, 5)},
    "RepVGGB3g2": {"depths": _B, "width": (3, 3, 3, 5), "groups": 2},
    "RepVGGB3g4": {"depths": _B, "width": (3, 3, 3, 5), "groups": 4},
    "RepVGGD2se": {"depths": _D, "width": (2.5, 2.5, 2.5, 5), "se": "before"},
}
VARIANTS |= {f"{name}-qa": {**config, "block": "qa"} for name, config in VARIANTS.items()}

# Arguments of every kind of block, to be verified alone.
BLOCKS: dict[str, dict[str, Any]] = {
    "identity": {"in_channels": 16, "out_channels": 16},
    "no identity": {"in_channels": 16, "out_channels": 32},
    "stride 2": {"in_channels": 16, "out_channels": 16, "stride": 2},
    "groups 2": {"in_channels": 16, "out_channels": 16, "groups": 2},
    "groups 4, stride 2": {"in_channels": 16, "out_channels": 32, "stride": 2, "groups": 4},
    "SE before ReLU": {"in_channels": 16, "out_channels": 16, "se": "before"},
    "SE after ReLU": {"in_channels": 16, "out_channels": 16, "se": "after"},
    "SE before ReLU, stride 2": {
        "in_channels": 16,
        "out_channels": 32,
        "stride": 2,
        "se": "before",
    },
}


class _Block(Reparameterizable):
    """The base of both kinds of block, which differ in their branches alone.

    Args:
        in_channels, out_channels, stride, groups: as in a convolution.
        se: squeeze-and-excitation "before" the ReLU (C/16 hidden channels, as in D2se), "after" it
            (C/4, as in RepVGGplus), or None.
        deploy: build the fused form.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        groups: int = 1,
        se: str | None = None,
        deploy: bool = False,
    ):
        super().__init__()
        if deploy:
            self.reparam = Conv2d(in_channels, out_channels, 3, stride, 1, groups=groups)
        else:
            self.make_branches(in_channels, out_channels, stride, groups)
        self.se = None
        if se is not None:
            self.se = SqueezeExcitation(
                out_channels, out_channels // {"before": 16, "after": 4}[se]
            )
        self.se_after_relu = se == "after"

    @abstractmethod
    def make_branches(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        """Make the branches of the train form."""

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        x = super().forward(x)
        if self.se is None:
            return relu(x)
        return self.se(relu(x)) if self.se_after_relu else relu(self.se(x))

    def main_convolution(self) -> Conv2d:
        return self.dense.conv


class RepVGGBlock(_Block):
    """ReLU(BN(conv3x3(x)) + BN(conv1x1(x)) + BN(x)), or ReLU(conv3x3(x)) in deploy form.

    The branch BN(x) exists if input and output have equally many channels and the stride is 1.
    [N, I, H, W] -> [N, O, ceil(H/stride), ceil(W/stride)]. Arguments as in _Block.
    """

    branch_names = ("dense", "pointwise", "identity")

    def make_branches(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        self.dense = ConvBN(in_channels, out_channels, 3, stride, groups)
        self.pointwise = ConvBN(in_channels, out_channels, 1, stride, groups)
        if in_channels == out_channels and stride == 1:
            self.identity = BatchNorm2d(in_channels)
            init.small_residual(self.dense.bn, self.pointwise.bn)
            init.shift_above_zero(self.identity)

    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        y = self.dense(x) + self.pointwise(x)
        return y if self.identity is None else y + self.identity(x)

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        branches = [self.dense.linear_map(read), self.pointwise.linear_map(read)]
        if self.identity is not None:
            conv = self.dense.conv
            unchanged = reparam.identity(conv.in_channels, conv.groups, read)
            branches.append(reparam.batch_norm(unchanged, self.identity, read))
        return reparam.add(*branches)

    def custom_l2(self) -> mge.Tensor:
        """Return the L2 penalty on the equivalent kernel, a scalar, instead of on each branch's.

        The ring of the 3x3 kernel is penalized as it is; the centre as the sum of the centres of
        both branches, each scaled by the gain of its batch norm, and normalized by the gains:
        sum(K3^2) - sum(c3^2) + sum((c3 t3 + c1 t1)^2 / (t3^2 + t1^2)), where K3 is the 3x3 kernel,
        c are the centres and t the gains, which get no gradient. The identity branch is left out,
        as in the source, get_custom_L2 of DingXiaoH/RepVGG.
        """
        dense, centre = self.dense.conv.weight, self.dense.conv.weight[..., 1:2, 1:2]
        pointwise = self.pointwise.conv.weight  # [O, I/g, 1, 1], or [G, O/G, I/G, 1, 1]
        per_output = (*dense.shape[:-3], 1, 1, 1)
        t3, t1 = (
            (norm.weight / F.sqrt(norm.running_var + norm.eps)).detach().reshape(per_output)
            for norm in (self.dense.bn, self.pointwise.bn)
        )
        equivalent = centre * t3 + pointwise * t1
        ring = F.sum(dense**2) - F.sum(centre**2)
        return ring + F.sum(equivalent**2 / (t3**2 + t1**2))


class QARepVGGBlock(_Block):
    """ReLU(BN(BN(conv3x3(x)) + conv1x1(x) + x)), or ReLU(conv3x3(x)) in deploy form.

    Made for int8: a batch norm on the identity branch makes outlier weights, and a batch norm on
    each branch makes the variance of their sum larger than any branch's. So the identity and the
    1x1 convolution, which has no bias either, have none, and one after the sum keeps the training
    stable. The identity exists if input and output have equally many channels and the stride is 1.
    Squeeze-and-excitation comes after the last batch norm; where the authors' code has it, before
    that, the batch norm could not be folded into the convolution. Arguments and shapes as in
    RepVGGBlock.

    Source: Chu et al., Make RepVGG Greater Again: A Quantization-Aware Approach, AAAI 2024
    (arXiv 2212.01593), QARepVGGBlockV2 in its code. It is trained with plain L2 of 4e-5; custom L2
    makes int8 worse.
    """

    branch_names = ("dense", "pointwise", "bn")

    def make_branches(self, in_channels: int, out_channels: int, stride: int, groups: int) -> None:
        self.dense = ConvBN(in_channels, out_channels, 3, stride, groups)
        self.pointwise = Conv2d(in_channels, out_channels, 1, stride, groups=groups, bias=False)
        self.has_identity = in_channels == out_channels and stride == 1
        self.bn = BatchNorm2d(out_channels)
        if self.has_identity:
            init.small_residual(self.dense.bn)
            init.normal(self.pointwise.weight, init.RESIDUAL_STD / math.sqrt(in_channels // groups))
            init.shift_above_zero(self.bn)

    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        y = self.dense(x) + self.pointwise(x)
        return self.bn(y + x if self.has_identity else y)

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        branches = [self.dense.linear_map(read), reparam.convolution(self.pointwise, read)]
        if self.has_identity:
            conv = self.dense.conv
            branches.append(reparam.identity(conv.in_channels, conv.groups, read))
        return reparam.batch_norm(reparam.add(*branches), self.bn, read)


_BLOCK_KINDS = {"plain": RepVGGBlock, "qa": QARepVGGBlock}


class RepVGG(StagedClassifier):
    """A RepVGG classifier: [N, in_chans, H, W] -> logits [N, num_classes], for any H and W.

    Args:
        depths: number of blocks in stages 1 to 4; stage 0 is always one block.
        width: multipliers of the stages' 64, 128, 256 and 512 channels.
        groups: number of groups in every second block of stages 1 to 3.
        se: squeeze-and-excitation "before" or "after" the ReLU, or None; see _Block.
        block: "plain", RepVGGBlock, or "qa", QARepVGGBlock.
        num_classes: length of the logits.
        stride: total stride, 8, 16 or 32.
        deploy: build the fused form.
        in_chans: number of channels of the images.
    """

    def __init__(
        self,
        depths: Sequence[int],
        width: Sequence[float],
        groups: int = 1,
        se: str | None = None,
        block: str = "plain",
        num_classes: int = 1000,
        stride: int = 32,
        deploy: bool = False,
        in_chans: int = 3,
    ):
        super().__init__(stride)
        make_block = _BLOCK_KINDS[block]
        base = (64, 128, 256, 512)
        self.num_features = tuple(int(b * w) for b, w in zip(base, width, strict=True))
        self.num_classes, self.in_chans = num_classes, in_chans
        channels = min(64, self.num_features[0])
        down = self.down_samplings[0]
        self.stage0 = make_block(in_chans, channels, stride=down, se=se, deploy=deploy)
        index = 1  # of the block in the whole network: every second one is grouped, not the last
        for stage, (depth, out_channels) in enumerate(
            zip(depths, self.num_features, strict=True), 1
        ):
            blocks = []
            for i in range(depth):
                grouped = index % 2 == 0 and stage < 4
                blocks.append(
                    make_block(
                        channels,
                        out_channels,
                        stride=self.down_samplings[stage] if i == 0 else 1,
                        groups=groups if grouped else 1,
                        se=se,
                        deploy=deploy,
                    )
                )
                channels = out_channels
                index += 1
            setattr(self, f"stage{stage}", M.Sequential(*blocks))
        self.linear = Linear(channels, num_classes)
