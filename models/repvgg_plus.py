"""RepVGGplus: a deeper RepVGG with squeeze-and-excitation after the ReLU and auxiliary classifiers.

Source: the repository DingXiaoH/RepVGG, model RepVGGplus-L2pse.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import megengine as mge
import megengine.module as M

from . import reparam
from .layers import ConvBN, Linear, global_average_pool, relu
from .repvgg import RepVGG

VARIANTS = {
    "RepVGGplusL2pse": {"depths": (8, 14, 24, 1), "width": (2.5, 2.5, 2.5, 5), "se": "after"},
}


class AuxiliaryHead(M.Module):
    """A classifier on an inner map, for training only: [N, C, H, W] -> logits [N, num_classes]."""

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        self.downsample = ConvBN(channels, channels, 3, stride=2)
        self.linear = Linear(channels, num_classes)

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return self.linear(global_average_pool(relu(self.downsample(x))))


class RepVGGPlus(RepVGG):
    """RepVGG with auxiliary heads after stage 1, stage 2 and the first half of stage 3.

    In training mode (train form) the output is a dict of logits: "main", "stage1_aux", "stage2_aux"
    and "stage3_first_aux"; the loss is the cross-entropy of "main" plus 0.1 times the sum of the
    others'. In evaluation mode and in deploy form the output is the main logits alone; the deploy
    form has no auxiliary heads. Arguments as in RepVGG.
    """

    auxiliary_weight = 0.1

    def __init__(
        self,
        depths: Sequence[int],
        width: Sequence[float],
        se: str | None = None,
        num_classes: int = 1000,
        stride: int = 32,
        deploy: bool = False,
        in_chans: int = 3,
    ):
        super().__init__(
            depths,
            width,
            se=se,
            num_classes=num_classes,
            stride=stride,
            deploy=deploy,
            in_chans=in_chans,
        )
        self.stage1_aux = self.stage2_aux = self.stage3_first_aux = None
        if not deploy:
            first, second, third, _ = self.num_features
            self.stage1_aux = AuxiliaryHead(first, num_classes)
            self.stage2_aux = AuxiliaryHead(second, num_classes)
            self.stage3_first_aux = AuxiliaryHead(third, num_classes)

    def forward(self, x: mge.Tensor) -> mge.Tensor | dict[str, mge.Tensor]:
        if not self.training or self.stage1_aux is None:
            return super().forward(x)
        outputs = {}
        *segments, last = self.segments()
        for segment in segments:
            x = segment(x)
            if isinstance(x, tuple):
                x, logits = x
                outputs.update(logits)
        return {**outputs, "main": last(x)}

    def is_compiled(self, x: mge.Tensor) -> bool:
        """Return whether `forward` computes these maps by a compiled program: without heads."""
        return self.stage1_aux is None and super().is_compiled(x)

    def segments(self) -> list[Callable]:
        """Return StagedClassifier.segments, in training mode with the auxiliary heads."""
        segments = super().segments()
        if not self.training or self.stage1_aux is None:
            return segments

        def with_head(block: Callable, name: str) -> Callable:
            def segment(x: mge.Tensor) -> tuple[mge.Tensor, dict[str, mge.Tensor]]:
                x = block(x)
                return x, {name: getattr(self, name)(x)}

            return segment

        first, second, third = len(self.stage1), len(self.stage2), len(self.stage3)
        ends = {"stage1_aux": first, "stage2_aux": first + second}  # segment 0 is stage 0
        ends["stage3_first_aux"] = first + second + third // 2
        for name, i in ends.items():
            segments[i] = with_head(segments[i], name)
        return segments

    def fuse_in_place(self, read: reparam.Read = reparam.float64) -> None:
        """Drop the auxiliary heads; the blocks fuse themselves."""
        self.stage1_aux = self.stage2_aux = self.stage3_first_aux = None
