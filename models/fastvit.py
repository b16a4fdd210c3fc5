"""FastViT without attention: every token mixer a RepMixer, which is one depthwise convolution.

Source: Vasu et al., FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization,
ICCV 2023 (arXiv 2303.14189); structure and names of the variants from the repository
apple/ml-fastvit. Its larger variants, SA and MA, have attention in the last stage and are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import megengine as mge
import megengine.module as M
import numpy as np

from . import reparam
from .layers import (
    BatchNorm2d,
    Conv2d,
    ConvBN,
    DropPath,
    FusibleConvBN,
    LargeKernel,
    Linear,
    gelu,
    scale_channels,
)
from .mobileone import MobileOneUnit
from .reparameterizable import Reparameterizable
from .staged import StagedClassifier

# ratio: channels inside a feed-forward network for each of its input
VARIANTS: dict[str, dict[str, Any]] = {
    "FastViTT8": {"channels": (48, 96, 192, 384), "depths": (2, 2, 4, 2), "ratio": 3},
    "FastViTT12": {"channels": (64, 128, 256, 512), "depths": (2, 2, 6, 2), "ratio": 3},
    "FastViTS12": {"channels": (64, 128, 256, 512), "depths": (2, 2, 6, 2), "ratio": 4},
}

# Arguments of every kind of block, to be verified alone.
BLOCKS = {"block": {"channels": 16, "ratio": 3}}
DEPTHWISE = {  # alone: behind it a layer scale and a shortcut hide errors of single taps
    "depthwise layer": {"in_channels": 16, "out_channels": 16, "kernel_size": 7, "groups": 16}
}
EMBEDDINGS = {"patch embedding": {"in_channels": 16, "out_channels": 32}}
UNITS = {
    "last unit": {
        "in_channels": 16,
        "out_channels": 32,
        "kernel_size": 3,
        "groups": 16,
        "se": True,
        "activation": gelu,
    }
}


def layer_scale(channels: int) -> mge.Parameter:
    """Return one factor per channel, [C, 1, 1], that starts at 1e-5."""
    return mge.Parameter(np.full((channels, 1, 1), 1e-5, np.float32))


class RepMixer(Reparameterizable):
    """x + scale * (BN(depthwise3x3(x)) + BN(depthwise1x1(x)) + BN(x) - BN(x)).

    The two batch norms of x are different ones, `identity` and `norm`. In deploy form all of it is
    one depthwise 3x3 convolution with bias. [N, C, H, W] -> same shape.
    """

    branch_names = ("dense", "pointwise", "identity", "norm", "scale")

    def __init__(self, channels: int, deploy: bool = False):
        super().__init__()
        if deploy:
            self.reparam = Conv2d(channels, channels, 3, 1, 1, groups=channels)
        else:
            self.dense = ConvBN(channels, channels, 3, groups=channels)
            self.pointwise = ConvBN(channels, channels, 1, groups=channels)
            self.identity = BatchNorm2d(channels)
            self.norm = BatchNorm2d(channels)
            self.scale = layer_scale(channels)

    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        mixed = self.dense(x) + self.pointwise(x) + self.identity(x)
        return x + scale_channels(mixed - self.norm(x), self.scale)

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        channels = self.dense.conv.in_channels

        def unchanged() -> reparam.LinearMap:
            return reparam.identity(channels, channels, read)

        mixed = reparam.add(
            self.dense.linear_map(read),
            self.pointwise.linear_map(read),
            reparam.batch_norm(unchanged(), self.identity, read),
            reparam.negative(reparam.batch_norm(unchanged(), self.norm, read)),
        )
        return reparam.add(reparam.scaled(mixed, read(self.scale)), unchanged())

    def main_convolution(self) -> Conv2d:
        return self.dense.conv


class ScaledConv(Reparameterizable):
    """scale * conv1x1(x), both with a bias; one convolution in deploy form.

    [N, I, H, W] -> [N, O, H, W].
    """

    branch_names = ("conv", "scale")

    def __init__(self, in_channels: int, out_channels: int, deploy: bool = False):
        super().__init__()
        conv = Conv2d(in_channels, out_channels, 1)
        if deploy:
            self.reparam = conv
        else:
            self.conv, self.scale = conv, layer_scale(out_channels)

    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        return scale_channels(self.conv(x), self.scale)

    def linear_map(self, read: reparam.Read) -> reparam.LinearMap:
        return reparam.scaled(reparam.convolution(self.conv, read), read(self.scale))

    def main_convolution(self) -> Conv2d:
        return self.conv


class FeedForward(M.Module):
    """scale * conv1x1(GELU(conv1x1(BN(depthwise7x7(x))))): [N, C, H, W] -> same shape.

    There are `ratio` C channels inside; the 1x1 convolutions have biases and no batch norms.
    """

    def __init__(self, channels: int, ratio: int, deploy: bool = False):
        super().__init__()
        self.depthwise = FusibleConvBN(channels, channels, 7, groups=channels, deploy=deploy)
        self.expand = Conv2d(channels, ratio * channels, 1)
        self.project = ScaledConv(ratio * channels, channels, deploy)

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return self.project(gelu(self.expand(self.depthwise(x))))


class FastViTBlock(M.Module):
    """Token mixer, then x + feed-forward network of x: [N, C, H, W] -> same shape."""

    def __init__(self, channels: int, ratio: int, deploy: bool = False):
        super().__init__()
        self.token = RepMixer(channels, deploy)
        self.ffn = FeedForward(channels, ratio, deploy)
        self.drop = DropPath()

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        x = self.token(x)
        return x + self.drop(self.ffn(x))


class PatchEmbedding(M.Module):
    """A 7x7 convolution with stride 2 and a 3x3 one beside it, then a 1x1 unit with GELU.

    The first has one group per input channel. No activation follows it: the original calls one and
    drops its result, and its weights were trained so. [N, I, H, W] -> [N, O, ceil(H/2), ceil(W/2)].
    """

    def __init__(self, in_channels: int, out_channels: int, deploy: bool = False):
        super().__init__()
        self.spread = LargeKernel(in_channels, out_channels, 7, 3, 2, in_channels, deploy)
        self.mix = MobileOneUnit(out_channels, out_channels, 1, activation=gelu, deploy=deploy)

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return self.mix(self.spread(x))


class FastViT(StagedClassifier):
    """A FastViT classifier: [N, in_chans, H, W] -> logits [N, num_classes], for any H and W.

    Args:
        channels: number of channels in each of the four stages.
        depths: number of blocks in each stage.
        ratio: factor of the channels inside the feed-forward networks.
        num_classes: length of the logits.
        stride: total stride, 8, 16 or 32.
        deploy: build the fused form.
        in_chans: number of channels of the images.
    """

    check_size = 256

    def __init__(
        self,
        channels: Sequence[int],
        depths: Sequence[int],
        ratio: int,
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
        unit: dict[str, Any] = {"activation": gelu, "deploy": deploy}
        self.stage0 = M.Sequential(
            MobileOneUnit(in_chans, first, 3, down1, **unit),
            MobileOneUnit(first, first, 3, down2, groups=first, **unit),
            MobileOneUnit(first, first, 1, **unit),
        )
        for stage, (width, depth) in enumerate(zip(channels, depths, strict=True), 1):
            blocks: list[M.Module] = []
            if stage > 1:
                blocks.append(PatchEmbedding(channels[stage - 2], width, deploy))
            blocks += [FastViTBlock(width, ratio, deploy) for _ in range(depth)]
            setattr(self, f"stage{stage}", M.Sequential(*blocks))
        self.last = MobileOneUnit(last, 2 * last, 3, groups=last, se=True, **unit)
        self.linear = Linear(2 * last, num_classes)

    def classify(self, x: mge.Tensor) -> mge.Tensor:
        """Compute the logits from the last map."""
        return super().classify(self.last(x))
