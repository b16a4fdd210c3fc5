"""Flags made of the fields of dataclasses; see data/setting.py for what a field says."""

from __future__ import annotations

import argparse
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from typing import Any

import cli
from data import by_epoch
from utils import UserError

_SITUATIONS = {  # with defaults of their own
    "": "",
    "digits": " without --data",
    "adamw": " with --optimizer adamw or muon",
    "--qat": " with --qat",
}


def destination(field: Field) -> str:
    """Name of a field's value in the parsed arguments: the flag's own, with underscores."""
    return (field.metadata["flag"] or field.name).replace("-", "_")


def described(owner: type) -> list[Field]:
    """Return the fields of a dataclass that have a flag."""
    return [field for field in fields(owner) if field.metadata]


def add(parser: argparse.ArgumentParser, owners: list[type[Any]], headings: dict[str, str]) -> None:
    """Add a flag for every described field of the dataclasses `owners`, grouped.

    `headings` are those of the groups in order, each with the flags (destinations, separated by
    spaces) that come first in it and in this order, whatever group their field names. The others
    follow under their field's group, or under their class's GROUP.
    """
    order = {name: (title, i) for title, text in headings.items() for i, name in
             enumerate(text.split())}  # fmt: skip
    groups: dict[str, list[tuple[int, Field, Any]]] = {title: [] for title in headings}
    for owner in owners:
        hints = typing.get_type_hints(owner)
        for field in described(owner):
            default = (field.metadata["group"] or owner.GROUP, len(order))
            title, position = order.get(destination(field), default)
            groups[title].append((position, field, hints[field.name]))
    for title, members in groups.items():
        group = parser.add_argument_group(title)
        for _, field, hint in sorted(members, key=lambda member: member[0]):
            flag = "--" + destination(field).replace("_", "-")
            group.add_argument(flag, **_options(field, hint))


def _options(field: Field, hint: Any) -> dict[str, Any]:
    """Return the keyword arguments of add_argument for a field of type `hint`."""
    meta, kind = field.metadata, hint
    varies = meta["varies"] or meta["defaults"] is not None or field.default is MISSING
    options: dict[str, Any] = {"default": None if varies else field.default, "help": _help(meta)}
    if typing.get_origin(hint) is types.UnionType:  # "X | None"
        kind = typing.get_args(hint)[0]
    if kind is bool:
        action = argparse.BooleanOptionalAction if meta["negatable"] else "store_true"
        return options | {"action": action}
    if typing.get_origin(kind) is tuple:  # of a known length, or of any: (float, ...)
        kind, *others = typing.get_args(kind)
        options["nargs"] = "+" if others == [Ellipsis] else 1 + len(others)
    if meta["value_if_bare"] is not None:
        options |= {"nargs": "?", "const": kind(meta["value_if_bare"])}
    if meta["choices"]:
        return options | {"type": kind, "choices": meta["choices"]}
    is_real = kind is float
    if kind in (int, float):
        is_open = meta["above"] is not None
        low = meta["above"] if is_open else meta["at_least"]
        kind = cli.number(kind, low, meta["at_most"], open_low=is_open)
    elif meta["check"] is not None:
        kind = cli.checked(meta["check"])
    if meta["by_epoch"]:
        kind = _by_epoch(kind, is_real)
    return options | {"type": kind, "metavar": meta["metavar"]}


def _help(meta: typing.Mapping[str, Any]) -> str:
    """Return the help text, with the defaults of each situation where they differ."""
    text = meta["help"]
    if meta["defaults"]:
        values = (f"{value:g}{_SITUATIONS[when]}" for when, value in meta["defaults"].items())
        text += f" (default: {', '.join(values)})"
    return text


def _by_epoch(kind: Callable[[str], Any], is_real: bool) -> Callable[[str], Any]:
    """Return an argparse type: what `kind` takes, or the text of values that change by epoch.

    Along a cosine only real numbers change.
    """

    def parse(text: str) -> Any:
        if not by_epoch.changes(text):
            return kind(text)
        try:
            values = by_epoch.texts(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if "@" not in text and not is_real:
            raise argparse.ArgumentTypeError(
                f"{text!r} is for numbers with fractions; give steps, as in 1@0,2@38"
            )
        for value in values:
            kind(value)
        return text

    return parse
