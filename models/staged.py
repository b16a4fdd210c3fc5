"""The base of the networks with a stem, four stages and a linear classifier."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import megengine as mge
import megengine.module as M

from . import cpu
from .layers import global_average_pool

STRIDES = (8, 16, 32)  # total strides that a network can have


class StagedClassifier(M.Module):
    """A classifier on the mean of the last map: [N, in_chans, H, W] -> logits [N, num_classes].

    H and W are any. With a total stride of 16 the first of the five down-samplings has stride 1
    instead of 2, with 8 the first two, for small images; their blocks have the branches of a block
    with stride 1. A subclass creates `stage1` to `stage4`, what is before them (`stage0`, or as its
    `before_stages` says) and `linear`, sets `num_features`, `num_classes` and `in_chans`, and
    overrides the methods in which it differs.

    Attributes:
        num_features: channels of the four maps that `features` returns.
        num_classes: length of the logits.
        in_chans: number of channels of the images.
        down_samplings: stride of each of the five down-samplings before the last map.
        strides: pixels of the input per position of each of the four maps.
        arch: name of the architecture, set by `models.create`.
        options: further arguments given to `models.create`, set by it; `in_chans` unless it is 3,
            and `stride` unless it is 32.
        own_options: arguments of the class that `models.create` takes, beside `in_chans` and
            `stride`, each with its possible values.
        check_size: side in pixels of the images for an equivalence check, on which no tap of any
            kernel meets padding alone; in a class, for a total stride of 32.
    """

    check_size = 64
    options: ClassVar[dict[str, Any]] = {}
    own_options: ClassVar[dict[str, tuple]] = {}

    def __init__(self, stride: int = 32):
        """Raises ValueError for a total stride that is not one of `STRIDES`."""
        super().__init__()
        if stride not in STRIDES:
            raise ValueError(f"the total stride is {stride}, but it can be 8, 16 or 32")
        ones = {32: 0, 16: 1, 8: 2}[stride]
        self.down_samplings = (1,) * ones + (2,) * (5 - ones)
        self.strides = tuple(s * stride // 32 for s in (4, 8, 16, 32))
        self.check_size = max(64, type(self).check_size * stride // 32)

    def features(self, x: mge.Tensor) -> list[mge.Tensor]:
        """Return the maps after stages 1 to 4, at `strides`, as a backbone does."""
        x = self.before_stages(x)
        maps = []
        for stage in (self.stage1, self.stage2, self.stage3, self.stage4):
            x = stage(x)
            maps.append(x)
        return maps

    def before_stages(self, x: mge.Tensor) -> mge.Tensor:
        """Compute the input of stage 1 from the images."""
        return self.stage0(x)

    def classify(self, x: mge.Tensor) -> mge.Tensor:
        """Compute the logits from the last map."""
        return self.linear(global_average_pool(x))

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        last = cpu.compute(self, self._last_map, x)
        return self.classify(self._last_map(x) if last is None else last)

    def is_compiled(self, x: mge.Tensor) -> bool:
        """Return whether `forward` computes the last map of these images by a compiled program."""
        return cpu.covers(self, self._last_map, x)

    def _last_map(self, x: mge.Tensor) -> mge.Tensor:
        return self.features(x)[-1]

    def blocks(self) -> list[M.Module]:
        """Return the blocks of the four stages, in order."""
        return [b for s in (self.stage1, self.stage2, self.stage3, self.stage4) for b in s]

    def segments(self) -> list[Callable]:
        """Return the forward pass as one function per block, each of the map before it.

        The first takes the images, and the last returns what the network returns. The function of a
        block with an auxiliary head returns the map and {name of the head: logits}. Only the last
        function may draw random numbers.
        """
        blocks = self.blocks()
        last = blocks.pop()
        return [self.before_stages, *blocks, lambda x: self.classify(last(x))]
