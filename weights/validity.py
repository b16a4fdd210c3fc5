"""Checks of what a file says that it is a checkpoint of this project, before it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import models
from models.staged import STRIDES

from utils import brief

from .state import MOST_CHANNELS, class_count, input_channels

_MOST_CLASSES = 1_000_000  # so that a strange file makes no network that fills the memory
_OPTIONS = {  # of models.create, that every architecture has
    "in_chans": range(1, MOST_CHANNELS + 1),
    "stride": STRIDES,
}


def check(fields: Mapping[str, Any]) -> None:
    """Raise ValueError, TypeError or AttributeError for a value that `checkpoint.save` never wrote.

    `fields` are those of a `checkpoint.Checkpoint`, by name. The shapes of the tensors are checked
    when the network is built.
    """
    if fields["arch"] not in models.list_models():
        raise ValueError(f"its architecture is {brief(fields['arch'])}")
    if fields["form"] not in ("train", "deploy"):
        raise ValueError(f"its form is {brief(fields['form'])}")
    odd = [key for key, value in fields["state_dict"].items() if value.dtype.kind != "f"]
    if odd:
        raise ValueError(f"{odd[0]} holds no floating-point numbers")
    rows = class_count(fields["state_dict"]) or 0
    if type(fields["num_classes"]) is not int or fields["num_classes"] != rows:
        raise ValueError(
            f"it says {fields['num_classes']} classes, its classifier {rows or 'none'}"
        )
    if rows > _MOST_CLASSES:
        raise ValueError(f"its classifier has {rows} classes")
    names = fields["classes"]
    if names is not None and not all(isinstance(name, str) for name in names):
        raise ValueError("its names of the classes are no text")
    if names is not None and (isinstance(names, str) or (rows and len(names) != rows)):
        raise ValueError(f"it has {len(names)} names of classes, and {rows} classes")
    _check_options(fields)
    for name, (low, high) in (fields["activation_ranges"] or {}).items():
        if not low <= high:
            ends = f"{brief(low)} to {brief(high)}"
            raise ValueError(f"its activation {name} ranges from {ends}")


def _check_options(fields: Mapping[str, Any]) -> None:
    options = fields["options"]
    if not isinstance(options, dict):
        raise ValueError(f"its options are {brief(options)}")
    known = {**_OPTIONS, **models.own_options(fields["arch"])}
    for name, value in options.items():
        possible = known.get(name, ())
        if not possible or type(value) is not type(possible[0]) or value not in possible:
            raise ValueError(f"its option {name} is {brief(value)}")
    said, channels = options.get("in_chans", 3), input_channels(fields["state_dict"])
    if said != channels:
        raise ValueError(f"it says {said} input channels, its first kernel {channels}")
