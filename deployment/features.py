"""A network as a backbone: its feature maps as outputs, for detectors and other networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import megengine as mge
import megengine.module as M

from .tracing import ExportError

NAMES = ("stage1", "stage2", "stage3", "stage4")  # of the outputs


def backbone(model: M.Module) -> M.Module:
    """Return a Module that shares `model`'s tensors and returns its four feature maps.

    [N, C, H, W] -> maps at `model.strides`, see models.staged.StagedClassifier.features.
    Raises ExportError for a network without the method `features`.
    """
    if not hasattr(model, "features"):
        raise ExportError(
            f"{type(model).__name__} has no method `features`; export it without --features"
        )

    kind: Any = type(model)  # known at run time alone

    class Backbone(kind):
        def forward(self, x: mge.Tensor) -> tuple[mge.Tensor, ...]:
            return tuple(self.features(x))

    shared = Backbone.__new__(Backbone)
    shared.__dict__.update(model.__dict__)
    return shared


def shapes(
    model: M.Module, batch: int | str, sides: Sequence[int | str]
) -> list[tuple[str, list[int | str]]]:
    """Return (name, shape) of each output for images of `sides`: height and width, or their names.

    A map's side is the image's over the stride, rounded up.
    """
    return [
        (name, [batch, channels, *(_divided(side, stride) for side in sides)])
        for name, channels, stride in zip(NAMES, model.num_features, model.strides, strict=True)
    ]


def _divided(side: int | str, stride: int) -> int | str:
    return f"{side}/{stride}" if isinstance(side, str) else -(-side // stride)
