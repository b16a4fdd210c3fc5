"""A setting said once: a dataclass field that also carries what a flag for it needs.

Data alone: nothing here knows of command lines. training/flags.py makes flags of such fields.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping
from typing import Any


def setting(
    default: Any = dataclasses.MISSING,
    *,
    help: str,
    metavar: str | tuple[str, ...] | None = None,
    flag: str | None = None,
    group: str | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float = float("inf"),
    choices: Collection[str] = (),
    check: Callable[[str], object] | None = None,
    varies: bool = False,
    by_epoch: bool = False,
    defaults: Mapping[str, Any] | None = None,
    negatable: bool = False,
    value_if_bare: str | None = None,
) -> Any:
    """Return a dataclass field with its description as metadata.

    Args:
        default: the field's default; a field without one is required.
        help: a full phrase; the flag's help text.
        metavar: what the help calls the value.
        flag: the users' spelling where it is not the field's name with hyphens.
        group: heading in the help, where it is not that of the field's class.
        at_least, above, at_most: limits of a number; `at_least` or `above` is needed for one.
        choices: the words that are allowed.
        check: is given the text and raises UserError unless it is valid.
        varies: without the flag the value depends on something else, so the flag has no default.
        by_epoch: the value may change by epoch, see data/by_epoch.py.
        defaults: values without the flag, by situation: "" for any, then those that replace it, as
            in {"": 120, "digits": 12}.
        negatable: a switch that also has a --no- form.
        value_if_bare: what the flag means without a value.
    """
    description = dict(locals())
    del description["default"]
    return dataclasses.field(default=default, metadata=description)
