"""What the command lines share: the parser and the types of arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn

from utils import UserError, fail


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-sentence errors, and with defaults and examples in its help."""

    def __init__(self, description: str, examples: str, prog: str | None = None):
        super().__init__(
            prog=prog,
            description=description,
            epilog="examples:\n" + examples,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def error(self, message: str) -> NoReturn:
        """One sentence, exit status 2."""
        sys.exit(fail(f"{message} (see {self.prog} --help)"))


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=100)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if any(action.default is nothing for nothing in (None, False, argparse.SUPPRESS)):
            return action.help  # "(default: None)" says nothing
        return super()._get_help_string(action)


def number(kind: type, low: float, high: float = float("inf"), open_low: bool = False) -> Callable:
    """An argparse type: a finite int or float between `low` and `high`."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not (low < value if open_low else low <= value) or not value <= high:
            what = "a whole number" if kind is int else "a number"
            bounds = f"{'above' if open_low else 'of at least'} {low}"
            if high != float("inf"):
                bounds += f" and at most {high}"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what} {bounds}")
        if value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
        return value

    return parse


def arch_name(text: str) -> str:
    """An argparse type: the canonical name of an architecture."""
    import models  # MegEngine takes a second, which --help need not

    try:
        return models.canonical_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def arch_names(patterns: list[str]) -> list[str]:
    """Canonical names of architectures: each pattern is a name, a shell pattern or "all".

    Raises UserError for one that nothing matches.
    """
    import models

    names = {}  # in the order given, once each
    for pattern in patterns:
        matches = models.list_models("*" if pattern.lower() == "all" else pattern)
        if not matches:
            try:
                matches = [models.canonical_name(pattern)]
            except ValueError as error:
                raise UserError(f"argument --arch: {error}") from None
        names |= dict.fromkeys(matches)
    return list(names)
