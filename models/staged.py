"""What the families with a stem, four stages and a linear classifier have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import megengine as mge
import megengine.module as M

from .layers import global_average_pool


class StagedClassifier(M.Module):
    """Classifies by the mean of the last map: [N, 3, H, W] -> logits [N, num_classes], any H and W.

    Subclasses make `stage0` to `stage4` and `linear`, set `num_features` and `num_classes`, and
    override what is different. `models.create` sets `arch` and `options`.

    Attributes:
        num_features: channels of the four maps that `features` returns.
        strides: how many pixels of the input one step in each of these maps is.
    """

    strides = (4, 8, 16, 32)
    options: ClassVar[dict[str, Any]] = {}  # what was chosen beside the architecture

    def features(self, x: mge.Tensor) -> list[mge.Tensor]:
        """The maps after stages 1 to 4, at strides 4, 8, 16 and 32, for use as a backbone."""
        x = self.before_stages(x)
        maps = []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)
            maps.append(x)
        return maps

    def before_stages(self, x: mge.Tensor) -> mge.Tensor:
        """What comes before stage 1."""
        return self.stage0(x)

    def classify(self, x: mge.Tensor) -> mge.Tensor:
        """What comes after the stages: the last map -> logits."""
        return self.linear(global_average_pool(x))

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return self.classify(self.features(x)[-1])

    def segments(self) -> list[Callable]:
        """The forward pass, block by block, as functions of one map to be called in turn.

        The first takes the images and the last gives what the network gives. Where a network has
        an auxiliary head the function returns the map and {the head's name: logits}. Only the last
        may hold anything random.
        """
        blocks = [b for s in (self.stage1, self.stage2, self.stage3, self.stage4) for b in s]
        last = blocks.pop()
        return [self.before_stages, *blocks, lambda x: self.classify(last(x))]
