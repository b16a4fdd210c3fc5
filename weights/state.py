"""What a state dict in this project's names says, and whether it fits a network."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

import models
from models import init

import numpy as np

from .keymap import Tensors

Shapes = Mapping[str, tuple[int, ...]]


def form_of(names: Iterable[str]) -> str:
    """Return "deploy" when the names of the tensors are those of fused blocks, else "train"."""
    return "deploy" if any(".reparam." in name for name in names) else "train"


def class_count(state_dict: Tensors) -> int | None:
    """Return the number of classes, from the classifier; None where nothing of it is there."""
    names = [f"{head}.{p}" for p in ("weight", "bias") for head in ("linear", "head.linear")]
    heads = (state_dict.get(key) for key in names)
    return next((len(head) for head in heads if head is not None and head.ndim and head.size), None)


MOST_CHANNELS = 4096  # of an image, so that a strange file makes no network that fills the memory
_FIRST_KERNELS = (
    *("stage0.reparam.weight", "stem1.reparam.weight", "stem.reparam.weight"),
    *("stage0.dense.conv.weight", "stage0.dense.0.conv.weight"),
    *("stem1.conv.weight", "stem.conv.weight", "stage0.0.reparam.weight"),
    *("stage0.0.dense.0.conv.weight", "stage0.0.conv.weight"),
)


def input_channels(state_dict: Tensors) -> int:
    """Return the number of channels of the images, from the first kernel.

    It is 3 where there is no such kernel, and where its number is above MOST_CHANNELS.
    """
    kernels = (state_dict.get(key) for key in _FIRST_KERNELS)
    channels = next((k.shape[-3] for k in kernels if k is not None and k.ndim >= 4 and k.size), 3)
    return channels if channels <= MOST_CHANNELS else 3


_BACKBONE = re.compile(r"(?:stem\d?|stage\d)\.")


def without_head(shapes: Mapping[str, Any], state_dict: Tensors) -> dict[str, Any]:
    """Return what is given by name, but for the head's tensors that the state dict lacks.

    What stands behind the last stage is the classifier's, also where it is not a linear layer.
    """
    return {
        key: shape
        for key, shape in shapes.items()
        if key in state_dict or _BACKBONE.match(key) is not None
    }


def shapes_of(arch: str, num_classes: int, form: str, **options: Any) -> Shapes:
    """Return name -> shape of all tensors of a network; `options` are those of models.create."""
    shapes, head = _shapes_and_head(arch, form, **options)
    return shapes | {name: (num_classes, *shapes[name][1:]) for name in head}


@cache
def _shapes_and_head(
    arch: str, form: str, **options: Any
) -> tuple[dict[str, tuple[int, ...]], list[str]]:
    """Return the shapes of a network with 1,000 classes, and the tensors that depend on them."""
    gc.freeze()  # so that the collection below looks at the network alone
    try:
        with init.uninitialized():
            model = models.create(arch, deploy=form == "deploy", **options)
        shapes_and_head = models.state_shapes(model), models.head_names(model)
        del model
        gc.collect()  # a Module is in cycles, and large
    finally:
        gc.unfreeze()
    return shapes_and_head


def fits(shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Return whether a tensor of one shape can be reshaped to that of a network's tensor.

    It can where the two differ only in dimensions of length 1, and where the network has
    [groups, out / groups, ...] and the tensor [out, ...], as PyTorch has it.
    """
    grouped = len(wanted) == 5 and shape == (wanted[0] * wanted[1], *wanted[2:])
    return grouped or [n for n in shape if n != 1] == [n for n in wanted if n != 1]


def misfits(state_dict: Tensors, shapes: Shapes) -> list[str]:
    """Return what keeps a state dict from being that of a network with these shapes.

    Each phrase names one tensor; there is none where all tensors fit.
    """
    problems = [f"{key} is missing" for key in shapes if key not in state_dict]
    problems += [f"{key} is unknown" for key in state_dict if key not in shapes]
    problems += [
        f"{key} has shape {state_dict[key].shape} instead of {shape}"
        for key, shape in shapes.items()
        if key in state_dict and not fits(state_dict[key].shape, shape)
    ]
    return problems


def with_reversed_channels(state_dict: Tensors) -> Tensors:
    """Return a state dict whose network takes RGB images where the given one's takes BGR.

    The kernels with three input channels are those that read the image.
    """
    return {
        key: np.ascontiguousarray(value[:, ::-1])
        if value.ndim == 4 and value.shape[1] == 3
        else value
        for key, value in state_dict.items()
    }
