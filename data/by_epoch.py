"""Settings that change by epoch, kept as the text that says how.

- "160@0,192@38,224@113": 160 from the beginning, 192 after 38 epochs, 224 after 113.
- "1e-4..1e-5": along half a cosine from the first epoch to the end of the run.

Any other value is one value for the whole run. Fields of a dataclass may hold such texts where
their `setting` says `by_epoch`; `at` returns the dataclass as it is in an epoch.
"""

from __future__ import annotations

import math
from contextlib import suppress
from dataclasses import fields, replace
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar

from utils import UserError

T = TypeVar("T")


def changes(value: object) -> bool:
    """Return whether a setting changes by epoch; so does a tuple with a member that does."""
    if isinstance(value, tuple | list):
        return any(map(changes, value))
    return isinstance(value, str) and ("@" in value or ".." in value)


def texts(value: str) -> list[str]:
    """Return the texts of all values that a setting takes one after the other.

    Raises UserError where the epochs are not whole numbers that begin with 0 and rise, or there are
    not two ends of a cosine.
    """
    if "@" not in value:
        ends = value.split("..")
        if len(ends) != 2 or not all(ends):
            raise UserError(f"{value!r} is not of the form FIRST..LAST, such as 1e-4..1e-5")
        return ends
    steps = [part.rpartition("@")[::2] for part in value.split(",")]
    epochs = [epoch for _, epoch in steps]
    if not all(text and epoch.isdecimal() for text, epoch in steps):
        raise UserError(f"{value!r} is not of the form VALUE@EPOCH,VALUE@EPOCH, such as 1@0,2@38")
    if epochs[0] != "0" or any(int(a) >= int(b) for a, b in pairwise(epochs)):
        raise UserError(f"the epochs of {value!r} are to begin with 0 and to rise, as in 1@0,2@38")
    return [text for text, _ in steps]


def values(value: Any) -> list[Any]:
    """Return all values that a setting takes one after the other."""
    return list(map(_value, texts(value))) if changes(value) else [value]


def starts(value: Any) -> list[int]:
    """Return the epochs from which a setting has each of its values, or [0]."""
    if isinstance(value, tuple | list):
        return sorted(set().union(*map(starts, value)))
    return list(_steps(value)) if changes(value) and "@" in value else [0]


@lru_cache
def _steps(value: str) -> dict[int, Any]:
    """Return first epoch -> value."""
    epochs = (int(part.rpartition("@")[2]) for part in value.split(","))
    return dict(zip(epochs, map(_value, texts(value)), strict=True))


def _value(text: str) -> int | float | str:
    """Return a number where the text is one."""
    with suppress(ValueError):
        return int(text)
    with suppress(ValueError):
        return float(text)
    return text


def value_at(value: Any, epoch: int, epochs: int) -> Any:
    """Return what a setting is in epoch 0, 1, ... of a run of `epochs`.

    At and after the end it is what it becomes last.
    """
    if isinstance(value, tuple):
        return tuple(value_at(member, epoch, epochs) for member in value)
    if not changes(value):
        return value
    if "@" in value:
        return [v for start, v in _steps(value).items() if start <= epoch][-1]
    first, last = map(float, texts(value))
    return last + (first - last) * 0.5 * (1 + math.cos(math.pi * min(1, epoch / epochs)))


def changing(owner: Any) -> dict[str, Any]:
    """Return the fields of a dataclass that change by epoch, name -> value."""
    names = [field.name for field in fields(owner) if field.metadata.get("by_epoch", True)]
    return {name: getattr(owner, name) for name in names if changes(getattr(owner, name))}


def at(owner: T, epoch: int, epochs: int) -> T:
    """Return a dataclass with the values that its fields have in epoch 0, 1, ... of `epochs`."""
    now = {name: value_at(value, epoch, epochs) for name, value in changing(owner).items()}
    return replace(owner, **now) if now else owner  # type: ignore[type-var]


def same(one: object, other: object) -> bool:
    """Return whether two settings are the same in every epoch of every run."""
    if not (isinstance(one, str) and isinstance(other, str) and changes(one) and changes(other)):
        return one == other
    return (
        starts(one) == starts(other)
        and ("@" in one) == ("@" in other)
        and (values(one) == values(other))
    )
