"""Fold image preprocessing into a network: raw pixels as input, or BGR in place of RGB.

The scale of the pixels and the order of the colours are folded into the first convolution's kernel.
The mean cannot be folded into its bias: the network pads the normalized image with zeros, which
correspond to the mean in raw pixels, so that a bias would be wrong along the borders. The mean is
instead subtracted before the convolution, by one addition to the image, which is exact everywhere.
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

from .tracing import ExportError, in_channels


def raw_pixels(preprocessing: Preprocessing) -> Preprocessing:
    """Return `preprocessing` without normalization: pixels from 0 to 255."""
    return replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def in_color_order(preprocessing: Preprocessing, color: str) -> Preprocessing:
    """Return `preprocessing` with channels in the order `color`, "RGB" or "BGR".

    Raises ExportError where the images do not have three channels.
    """
    if preprocessing.channels != 3:
        raise ExportError(
            f"the network takes images of {preprocessing.channels} channels, which have no order "
            f"{color}; leave out --rgb-input and --bgr-input"
        )
    return preprocessing.in_color_order(color)


def describe(file_input: Preprocessing, size: tuple[int, int]) -> dict[str, Any]:
    """Return the fields of a Preprocessing for a file's metadata; `size` is the shorter side."""
    return asdict(replace(file_input, size=min(size)))


class ShiftedConv2d(Conv2d):
    """A convolution that adds `shift` [1, I, 1, 1] to its input before padding."""

    shift: mge.Tensor

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return super().forward(x + self.shift)


def adapt(model: M.Module, model_input: Preprocessing, file_input: Preprocessing) -> M.Module:
    """Return a network that takes images preprocessed by `file_input` in place of `model_input`.

    Its logits are those of `model`, which is not changed; all weights but the first kernel are
    shared. Raises ExportError unless exactly one convolution reads the image, as in deploy form,
    and for a network that takes another number of channels than `model_input` has.
    """
    if in_channels(model) != model_input.channels:
        raise ExportError(
            f"the network takes images of {in_channels(model)} channels, and its preprocessing has "
            f"{model_input.channels}; give a Preprocessing with channels={in_channels(model)}"
        )
    if file_input == model_input:
        return model
    model = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    on_image = _convolutions_on_image(model)
    if len(on_image) != 1:
        raise ExportError(
            f"the input format can be changed where one convolution reads the image, not "
            f"{len(on_image)}; fuse the network"
        )
    conv = on_image[0]
    ((parent, name),) = (
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if child is conv
    )

    same_order = file_input.color == model_input.color
    own = model_input if same_order else in_color_order(model_input, file_input.color)
    own_mean, own_std = own.per_channel(own.mean), own.per_channel(own.std)
    mean, std = file_input.per_channel(file_input.mean), file_input.per_channel(file_input.std)
    # pixels = x * std + mean, and the weights expect (pixels - own_mean) / own_std
    kernel = conv.weight.numpy().astype(np.float64)
    if not same_order:
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


def _convolutions_on_image(model: M.Module) -> list[Conv2d]:
    """Return the convolutions that read the image."""
    image = mge.Tensor(np.zeros((1, in_channels(model), 32, 32), np.float32))
    on_image: list[Conv2d] = []

    def note(conv: Conv2d, inputs: tuple) -> None:
        if inputs[0] is image:
            on_image.append(conv)

    convolutions = [module for module in model.modules() if isinstance(module, Conv2d)]
    hooks = [conv.register_forward_pre_hook(note) for conv in convolutions]
    training = model.training
    model.eval()  # so that batch norms keep their statistics
    model(image)
    model.train(training)
    for hook in hooks:
        hook.remove()
    return on_image
