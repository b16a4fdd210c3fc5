"""Networks that take other images than those they were trained on: raw pixels, BGR for RGB.

The scale of the pixels and the order of the colours go into the kernel of the first convolution. A
mean cannot go into its bias: the network pads with zeros after the normalization, which is with the
mean in raw pixels, so that a bias would be wrong along the borders. The mean is instead subtracted
before the convolution, by one addition to the image, and the result is exact everywhere.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, replace
from typing import Any

from models import init
from models.layers import Conv2d

import megengine as mge
import megengine.module as M
import numpy as np

from data.transforms import Preprocessing

from .tracing import ExportError


def raw_pixels(preprocessing: Preprocessing) -> Preprocessing:
    """The same without normalization: pixels of 0 to 255."""
    return replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def in_color_order(preprocessing: Preprocessing, color: str) -> Preprocessing:
    """The same with its channels in the order `color`, "RGB" or "BGR"."""
    if color == preprocessing.color:
        return preprocessing
    mean, std = preprocessing.mean[::-1], preprocessing.std[::-1]
    return replace(preprocessing, color=color, mean=mean, std=std)


def note(takes: Preprocessing, size: tuple[int, int]) -> dict[str, Any]:
    """What a file says of the images it takes: a Preprocessing's fields, `size` the short side."""
    return asdict(replace(takes, size=min(size)))


class ShiftedConv2d(Conv2d):
    """Adds `shift` [1, I, 1, 1] to its input before it pads and convolves."""

    shift: mge.Tensor

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return super().forward(x + self.shift)


def adapt(model: M.Module, expects: Preprocessing, takes: Preprocessing) -> M.Module:
    """A network that computes from images as `takes` says what `model` does from `expects`.

    `model` is left as it was; all weights but the first kernel are shared. Raises ExportError when
    there is not just one convolution on the image, as in train form.
    """
    if takes == expects:
        return model
    model = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    on_image = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, Conv2d) and child.in_channels == 3
    ]
    if len(on_image) != 1:
        raise ExportError(
            f"the input can be changed where one convolution is on the image, not {len(on_image)}; "
            "fuse the network"
        )
    parent, name, conv = on_image[0]

    own = in_color_order(expects, takes.color)
    own_mean, own_std, mean, std = map(np.array, (own.mean, own.std, takes.mean, takes.std))
    # x * std + mean are the pixels, and (pixels - own_mean) / own_std what the weights expect
    kernel = conv.weight.numpy().astype(np.float64)
    if takes.color != expects.color:
        kernel = kernel[:, ::-1]
    kernel = kernel * (std / own_std)[:, None, None]
    shift = (mean - own_mean) / std

    with init.uninitialized():
        changed = (ShiftedConv2d if shift.any() else Conv2d)(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
        )
    changed.weight = mge.Parameter(kernel.astype(np.float32))
    changed.bias = conv.bias
    if shift.any():
        changed.shift = mge.Tensor(shift.reshape(1, -1, 1, 1).astype(np.float32))
    changed.train(conv.training)
    setattr(parent, name, changed)
    return model
