"""Recipes: files of `flag = value` lines in recipes/, which stand before the flags that are typed.

A recipe is data: each line is given to the command's parser as if it had been typed, so that a flag
is described in one place. `--show-config` prints such lines too.
"""

from __future__ import annotations

import argparse
import difflib
from pathlib import Path
from typing import Any

from utils import ROOT, UserError

FOLDER = ROOT / "recipes"
ENDING = ".conf"
NOT_IN_A_RECIPE = ("help", "recipe", "list_archs", "show_config", "show_samples", "find_lr")


def names() -> list[str]:
    """Return the names of the recipes in recipes/, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*" + ENDING))


def arguments(name: str, parser: argparse.ArgumentParser) -> list[str]:
    """Return a recipe as arguments, to be parsed before those that are typed, which then win.

    `name` is one of `names()`, or a file. Raises UserError when there is no such recipe,
    and when the parser does not know a flag or refuses its value.
    """
    path = FOLDER / (name + ENDING)
    if not path.is_file():
        path = Path(name)
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError):
        raise UserError(
            f"there is no recipe {name!r}; give a file or one of {', '.join(names())}"
        ) from None
    arguments = []
    for line in lines:
        line = f" {line}".partition(" #")[0].strip()
        if line:
            key, _, value = (part.strip() for part in line.partition("="))
            arguments += _argument(key, value, name, parser)
    return arguments


def _argument(key: str, value: str, recipe: str, parser: argparse.ArgumentParser) -> list[str]:
    flags = {flag: action for action in parser._actions for flag in action.option_strings}
    action = flags.get(f"--{key}")
    if action is None or action.dest in NOT_IN_A_RECIPE:
        near = difflib.get_close_matches(f"--{key}", flags, n=1, cutoff=0)[0]
        raise UserError(
            f"recipe {recipe} has the unknown key {key!r}; the nearest is {near.lstrip('-')!r}"
        )
    if action.nargs == 0:  # a switch
        if value not in ("true", "false"):
            raise UserError(f"recipe {recipe}: {key} is {value!r}, but a switch is true or false")
        flag = f"--{key}" if value == "true" else f"--no-{key}"
        arguments = [flag] if flag in flags else []
    elif not value:
        raise wrong_value(recipe, key, "the value is empty; give one, or leave the line out")
    else:
        arguments = [f"--{key}", *(value.split() if action.nargs else [value])]
    parser.exit_on_error, before = False, parser.exit_on_error
    try:
        parser.parse_args(arguments)
    except argparse.ArgumentError as error:
        raise wrong_value(recipe, key, error.message) from None
    finally:
        parser.exit_on_error = before
    return arguments


def wrong_value(recipe: str, key: str, message: str) -> UserError:
    """Return the error for a value that a recipe gives and a flag refuses."""
    return UserError(f"recipe {recipe}: {key}: {message}")


def lines(args: argparse.Namespace) -> list[str]:
    """Return parsed arguments as the lines of a recipe; a value of None has no line.

    Raises UserError where a value cannot be written in a recipe.
    """
    texts = {
        name.replace("_", "-"): _text(value)
        for name, value in vars(args).items()
        if value is not None and name not in NOT_IN_A_RECIPE
    }
    for key, text in texts.items():
        if " #" in f" {text}":
            raise UserError(
                f"--{key} {text!r} cannot be written in a recipe, where ' #' begins a comment; "
                "give another value"
            )
    return [f"{key} = {text}" for key, text in texts.items()]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return " ".join(map(_text, value))
    return str(value)
