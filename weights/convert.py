"""From a file of any known layout to this project's checkpoint, and back."""

from __future__ import annotations

import gc
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache
from os import PathLike
from typing import Any

import models
from models import init

import numpy as np

from utils import UserError

from . import apple, basecls, dingxiaoh, files, port, repghost, repvit, timm
from .keymap import Source, Tensors, reshaped

SOURCES = (
    basecls.REPVGG,
    dingxiaoh.REPVGG,
    dingxiaoh.REPVGG_PLUS,
    timm.REPVGG,
    port.REPVGG,
    port.REPVGG_PLUS,
    apple.MOBILEONE,
    timm.MOBILEONE,
    repghost.REPGHOST,
    repghost.TIMM,
    repvit.THU,
    repvit.TIMM,
)


class ConversionError(UserError):
    """Tensors that are not those of a known network; the message lists them."""


@dataclass
class Foreign:
    """A recognized checkpoint of another repository, in our names and shapes."""

    source: Source
    arch: str
    options: dict[str, Any]  # of models.create
    num_classes: int
    state_dict: Tensors
    dropped: list[str]  # their keys that were left out on purpose

    @property
    def preprocessing(self):
        """What the source trained and tested this architecture with."""
        size, crop_ratio = self.source.sizes.get(self.arch, (224, 0.875))
        return replace(self.source.preprocessing, size=size, crop_ratio=crop_ratio)


def recognize(
    contents: Any, path: str | PathLike, arch: str | None = None, source: str | None = None
) -> Foreign:
    """What a file's contents are, from the names and shapes of their tensors.

    Args:
        contents: what files.read gave.
        path: for messages.
        arch, source: what they must be, if that is known.

    Raises ConversionError when a tensor is unknown, missing or of another shape, or when `arch` or
    `source` contradict what was found.
    """
    tensors = files.tensors_of(contents)
    if not tensors:
        raise ConversionError(f"{path} holds no tensors; give a checkpoint or a state dict")
    if odd := [key for key, tensor in tensors.items() if tensor.dtype.kind not in "biuf"]:
        raise ConversionError(f"{path} has tensors that are no real numbers: {_some(odd)}")
    candidates = [s for s in SOURCES if source in (None, s.name)]
    mapped = [(candidate, *candidate.to_ours(tensors)) for candidate in candidates]
    ranks = [(len(unknown), -len(ours)) for _, ours, _, unknown in mapped]
    # several are left where families share their keys; the shapes tell them apart
    best = [m for m, rank in zip(mapped, ranks, strict=True) if rank == min(ranks)]
    found, ours, dropped, unknown = best[0]
    if not ours or len(unknown) > len(ours):
        what = f"layout {source!r}" if source else "any known layout"
        raise ConversionError(
            f"{path} is not in {what}: it has keys such as {_some(unknown)}; "
            f"the layouts are {', '.join(sorted({s.name for s in SOURCES}))}"
        )
    if unknown:
        raise ConversionError(
            f"{path} ({found.title}) has tensors that no rule knows: {_some(unknown)}"
        )
    num_classes = class_count(ours) or 1000
    form = form_of(ours)
    archs = {  # name -> its layout
        name: option
        for option in reversed(best)
        for name in models.list_models()
        # nobody else has "-qa" in train form, and the deploy form is that of the twin without
        if fnmatchcase(name, option[0].archs) and (name == arch or not name.endswith("-qa"))
    }

    def options_of(name: str) -> dict[str, Any]:
        if form == "deploy" or name not in archs:
            return {}
        source, tensors, _, _ = archs[name]
        return source.options(tensors)

    def problems_of(name: str) -> list[str]:
        shapes = shapes_of(name, num_classes, form, **options_of(name))
        return misfits(archs.get(name, best[0])[1], shapes)

    order = sorted(archs, key=lambda name: name != arch)  # the one asked for first
    fitting = next((name for name in order if not problems_of(name)), None)
    if fitting is None:
        nearest = arch or min(archs, key=lambda name: len(problems_of(name)))
        problems = _some(problems_of(nearest))
        where = f"{path} ({found.title})"
        if arch is not None:
            raise ConversionError(f"{where} does not fit {arch}: {problems}")
        raise ConversionError(
            f"{where} fits no architecture; the nearest is {nearest}, but {problems}"
        )
    if arch not in (None, fitting):
        raise ConversionError(
            f"{path} holds {fitting}, but {arch} was asked for; leave the architecture out or "
            f"say {fitting}"
        )
    arch = fitting
    found, ours, dropped, _ = archs[arch]
    options = options_of(arch)
    shapes = shapes_of(arch, num_classes, form, **options)
    with np.errstate(over="ignore"):  # infinite weights are refused when the network is proven
        state = {
            key: reshaped(tensor, shapes[key]).astype(np.float32, copy=False)
            for key, tensor in ours.items()
        }
    return Foreign(found, arch, options, num_classes, state, dropped)


def export(state_dict: Tensors, arch: str, name: str) -> Tensors:
    """A state dict of ours, in either form, in the layout of the source called `name`."""
    source = next(
        (s for s in SOURCES if s.name == name and fnmatchcase(arch, s.archs)),
        None,
    )
    if source is None:
        names = sorted({s.name for s in SOURCES if fnmatchcase(arch, s.archs)})
        raise ConversionError(f"{name} has no {arch}; it can be exported as {', '.join(names)}")
    try:
        return source.from_ours(state_dict)
    except KeyError as error:
        raise ConversionError(
            f"{name} has no place for {error.args[0]} of {arch}; export the other form"
        ) from None


def form_of(state_dict: dict[str, Any]) -> str:
    """ "deploy" when the tensors (in our names) are those of fused blocks, else "train"."""
    return "deploy" if any(".reparam." in key for key in state_dict) else "train"


def class_count(state_dict: Tensors) -> int | None:
    """The length of the logits, from the classifier in our names; None where there is none."""
    heads = (state_dict.get(key) for key in ("linear.weight", "head.linear.weight"))
    return next((len(head) for head in heads if head is not None and head.ndim and head.size), None)


@cache
def shapes_of(arch: str, num_classes: int, form: str, **options: Any) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor of a network here."""
    with init.uninitialized():
        model = models.create(arch, num_classes, deploy=form == "deploy", **options)
    shapes = models.state_shapes(model)
    del model
    gc.collect()  # a Module is in cycles, and large
    return shapes


def misfits(ours: Tensors, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """What keeps renamed tensors from being those of a network with these shapes, a phrase each."""
    problems = [f"{key} is missing" for key in shapes if key not in ours]
    problems += [f"{key} is unknown" for key in ours if key not in shapes]
    problems += [
        f"{key} has shape {tuple(ours[key].shape)} instead of {shape}"
        for key, shape in shapes.items()
        if key in ours and reshaped(ours[key], shape) is None
    ]
    return problems


def _some(items: list[str]) -> str:
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(items[:5]) + more
