"""RepViT: depthwise token mixers trained with a 1x1 and an identity branch, and residual MLPs.

Source: Wang et al., RepViT: Revisiting Mobile CNN From ViT Perspective, CVPR 2024
(arXiv 2307.09283); structure and names of the variants from the repository THU-MIG/RepViT.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import megengine as mge
import megengine.module as M

from . import reparam
from .layers import (
    BatchNorm1d,
    BatchNorm2d,
    Conv2d,
    ConvBN,
    FusibleConvBN,
    Linear,
    SqueezeExcitation,
    gelu,
    global_average_pool,
)
from .reparameterizable import Reparameterizable
from .staged import StagedClassifier

# rows: stride-1 blocks of each stage in which squeeze-and-excitation alternates
VARIANTS = {
    "RepViTM0_6": {"channels": (40, 80, 160, 320), "rows": (1, 1, 8, 1)},
    "RepViTM0_9": {"channels": (48, 96, 192, 384), "rows": (2, 2, 14, 2)},
    "RepViTM1_0": {"channels": (56, 112, 224, 448), "rows": (2, 2, 14, 2)},
    "RepViTM1_1": {"channels": (64, 128, 256, 512), "rows": (2, 2, 12, 2)},
    "RepViTM1_5": {"channels": (64, 128, 256, 512), "rows": (4, 4, 24, 4)},
    "RepViTM2_3": {"channels": (80, 160, 320, 640), "rows": (6, 6, 34, 2)},
}

# Arguments of every kind of block, to be verified alone.
BLOCKS = {
    "block": {"channels": 16},
    "block, SE": {"channels": 16, "se": True},
    "block, legacy": {"channels": 16, "legacy": True},
}
DOWNSAMPLES = {"downsampling block": {"in_channels": 16, "out_channels": 32}}


class RepVGGDW(Reparameterizable):
    """BN(BN(depthwise3x3(x)) + depthwise1x1(x) + x): [N, C, H, W] -> same shape.

    The 1x1 convolution has a bias and no batch norm of its own. With `legacy`, for the repository's
    first checkpoints, the block is BN(depthwise3x3(x)) + BN(depthwise1x1(x)) + x. In deploy form
    both are one depthwise 3x3 convolution with bias.
    """

    branch_names = ("dense", "pointwise", "bn")

    def __init__(self, channels: int, legacy: bool = False, deploy: bool = False):
        super().__init__()
        if deploy:
            self.reparam = Conv2d(channels, channels, 3, 1, 1, groups=channels)
        else:
            self.dense = ConvBN(channels, channels, 3, groups=channels)
            if legacy:
                self.pointwise = ConvBN(channels, channels, 1, groups=channels)
            else:
                self.pointwise = Conv2d(channels, channels, 1, groups=channels)
                self.bn = BatchNorm2d(channels)

    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        y = self.dense(x) + self.pointwise(x) + x
        return y if self.bn is None else self.bn(y)

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        conv, legacy = self.dense.conv, self.bn is None
        if legacy:
            pointwise = self.pointwise.linear_map(read)
        else:
            pointwise = reparam.convolution(self.pointwise, read)
        unchanged = reparam.identity(conv.in_channels, conv.groups, read)
        branches = reparam.add(self.dense.linear_map(read), pointwise, unchanged)
        return branches if legacy else reparam.batch_norm(branches, self.bn, read)

    def main_convolution(self) -> Conv2d:
        return self.dense.conv


class ChannelMixer(M.Module):
    """x + conv1x1(GELU(conv1x1(x))) with 2 C channels inside: [N, C, H, W] -> same shape."""

    def __init__(self, channels: int, deploy: bool = False):
        super().__init__()
        self.expand = FusibleConvBN(channels, 2 * channels, 1, deploy=deploy)
        self.project = FusibleConvBN(2 * channels, channels, 1, deploy=deploy)
        if not deploy:
            M.init.zeros_(self.project.bn.weight)  # the mixer starts as the identity

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return x + self.project(gelu(self.expand(x)))


class RepViTBlock(M.Module):
    """Token mixer, squeeze-and-excitation if `se`, channel mixer: [N, C, H, W] -> same shape."""

    def __init__(self, channels: int, se: bool = False, legacy: bool = False, deploy: bool = False):
        super().__init__()
        self.token = RepVGGDW(channels, legacy, deploy)
        # a quarter of the channels, to a multiple of 8
        hidden = max(8, (channels // 4 + 4) // 8 * 8)
        self.se = SqueezeExcitation(channels, hidden) if se else None
        self.channel = ChannelMixer(channels, deploy)

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        x = self.token(x)
        return self.channel(x if self.se is None else self.se(x))


class Downsample(M.Module):
    """Depthwise 3x3 convolution with stride 2, 1x1 convolution, channel mixer.

    [N, I, H, W] -> [N, O, ceil(H/2), ceil(W/2)].
    """

    def __init__(self, in_channels: int, out_channels: int, deploy: bool = False):
        super().__init__()
        self.depthwise = FusibleConvBN(in_channels, in_channels, 3, 2, in_channels, deploy)
        self.expand = FusibleConvBN(in_channels, out_channels, 1, deploy=deploy)
        self.channel = ChannelMixer(out_channels, deploy)

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return self.channel(self.expand(self.depthwise(x)))


class Head(M.Module):
    """A batch norm and a linear classifier: [N, C] -> logits [N, num_classes]."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.bn = BatchNorm1d(channels)
        self.linear = Linear(channels, num_classes)

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return self.linear(self.bn(x))


class RepViT(StagedClassifier):
    """A RepViT classifier: [N, in_chans, H, W] -> logits [N, num_classes], for any H and W.

    The second of two heads is for distillation: in training mode (train form) the output is a dict
    of their logits, "main" and "distilled", whose losses are added; in evaluation mode it is their
    mean. With one head it is the logits of that head. The deploy form has one linear layer.

    Args:
        channels: number of channels in each of the four stages.
        rows: number of blocks in each stage; all but the last stage have one more.
        heads: number of heads, 1 or 2.
        legacy: use the token mixer of the first checkpoints, see RepVGGDW.
        num_classes: length of the logits.
        stride: total stride, 8, 16 or 32.
        deploy: build the fused form.
        in_chans: number of channels of the images.
    """

    auxiliary_weight = 1.0
    own_options: ClassVar = {"heads": (1, 2), "legacy": (False, True)}
    head: M.Module  # None in deploy form, where `linear` takes its place

    def __init__(
        self,
        channels: Sequence[int],
        rows: Sequence[int],
        heads: int = 2,
        legacy: bool = False,
        num_classes: int = 1000,
        stride: int = 32,
        deploy: bool = False,
        in_chans: int = 3,
    ):
        super().__init__(stride)
        self.num_features = tuple(channels)
        self.num_classes, self.in_chans = num_classes, in_chans
        first = channels[0]
        down1, down2, *_ = self.down_samplings
        self.stem1 = FusibleConvBN(in_chans, first // 2, 3, down1, deploy=deploy)
        self.stem2 = FusibleConvBN(first // 2, first, 3, down2, deploy=deploy)
        for stage, (width, depth) in enumerate(zip(channels, rows, strict=True), 1):
            blocks = []
            if stage > 1:  # the block without SE that ends one stage is the first of the next here
                before = channels[stage - 2]
                blocks.append(RepViTBlock(before, False, legacy, deploy))
                blocks.append(Downsample(before, width, deploy))
            blocks += [RepViTBlock(width, i % 2 == 0, legacy, deploy) for i in range(depth)]
            setattr(self, f"stage{stage}", M.Sequential(*blocks))
        self.head = self.head_dist = self.linear = None
        if deploy:
            self.linear = Linear(channels[-1], num_classes)
        else:
            self.head = Head(channels[-1], num_classes)
            self.head_dist = Head(channels[-1], num_classes) if heads == 2 else None

    def before_stages(self, x: mge.Tensor) -> mge.Tensor:
        """Compute the stem."""
        return self.stem2(gelu(self.stem1(x)))

    def classify(self, x: mge.Tensor) -> mge.Tensor | dict[str, mge.Tensor]:
        """Compute the logits from the last map; in training mode those of both heads."""
        x = global_average_pool(x)
        if self.linear is not None:
            return self.linear(x)
        main = self.head(x)
        if self.head_dist is None:
            return main
        distilled = self.head_dist(x)
        if self.training:
            return {"main": main, "distilled": distilled}
        return (main + distilled) / 2

    def fuse_in_place(self, read: reparam.Read = reparam.float64) -> None:
        """Replace the heads by one linear layer, unless `linear` is one already.

        The blocks fuse themselves.
        """
        if self.linear is None:
            heads = [head for head in (self.head, self.head_dist) if head is not None]
            maps = [
                reparam.batch_norm_before(head.bn, reparam.linear(head.linear, read), read)
                for head in heads
            ]
            self.linear = reparam.to_linear(reparam.mean(*maps), like=self.head.linear)
        self.head = self.head_dist = None
