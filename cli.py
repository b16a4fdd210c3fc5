"""What the command lines share: the parser, types of arguments and flags of the same meaning."""

from __future__ import annotations

import argparse
import os
import re
import sys
import textwrap
from collections.abc import Callable
from typing import Any, NoReturn

from utils import UserError, assert_writable, fail


class ArgumentParser(argparse.ArgumentParser):
    """argparse with one-sentence errors, and with defaults and examples in its help."""

    def __init__(self, description: str, examples: str, prog: str | None = None):
        super().__init__(
            prog=prog,
            description="\n".join(textwrap.fill(line, 100) for line in description.splitlines()),
            epilog="examples:\n" + examples,
            formatter_class=_HelpFormatter,
            allow_abbrev=False,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments; raise UserError for an environment variable that cannot be used."""
        parsed = super().parse_args(args, namespace)
        device = os.environ.get("MGE_DEFAULT_DEVICE", "")
        if os.environ.get("REPARAM_CPU") or device.startswith("gpu"):
            _check_environment()
        return parsed

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parse arguments; an empty one, as an unset shell variable gives, is an error."""
        given = sys.argv[1:] if args is None else list(args)
        for before, argument in zip(["", *given], given, strict=False):
            flag = before if not argument else argument.removesuffix("=")
            if not argument or re.fullmatch(r"--[\w-]+=", argument):
                where = f" after {flag}" if flag.startswith("-") else ""
                self.error(f"the argument{where} is empty; give a value, or leave it out")
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Print one sentence and exit with status 2."""
        sys.exit(fail(f"{message} (see {self.prog} --help)"))


def _check_environment() -> None:
    from models import cpu, environment  # a second, which --help and most calls need not

    try:
        cpu.path()
        environment.check_device()
    except ValueError as error:
        raise UserError(str(error)) from None


class _HelpFormatter(argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter):
    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=28, width=100)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default in (None, [], argparse.SUPPRESS) or action.default is False:
            # "(default: None)" says nothing; BooleanOptionalAction has added its own
            return action.help and action.help.removesuffix(" (default: %(default)s)")
        if "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def number(kind: type, low: float, high: float = float("inf"), open_low: bool = False) -> Callable:
    """Return an argparse type: a finite int or float between `low` and `high`, both included.

    With `open_low`, `low` itself is excluded.
    """

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


def checked(check: Callable[[str], object]) -> Callable[[str], str]:
    """Return an argparse type: text for which `check` raises no UserError."""

    def parse(text: str) -> str:
        try:
            check(text)
        except UserError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        return text

    return parse


output_file = checked(assert_writable)  # an argparse type: a file to write, which is possible


def arch_name(text: str) -> str:
    """Return the canonical name of an architecture; an argparse type."""
    import models  # MegEngine takes a second, which --help need not

    try:
        return models.canonical_name(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def arch_names(patterns: list[str]) -> list[str]:
    """Return canonical names of architectures, in the order of `patterns` and once each.

    A pattern is a name, a shell pattern or "all". Raises UserError for one that matches nothing.
    """
    import models

    names: dict[str, None] = {}
    for pattern in patterns:
        matches = models.list_models("*" if pattern.lower() == "all" else pattern)
        if not matches:
            try:
                matches = [models.canonical_name(pattern)]
            except ValueError as error:
                raise UserError(f"argument --arch: {error}") from None
        names |= dict.fromkeys(matches)
    return list(names)


COUNT = number(int, 1)

# Flags of the same meaning in several commands: flag -> arguments of `add_argument`.
SHARED_FLAGS: dict[str, dict[str, Any]] = {
    "--arch": {
        "type": arch_name,
        "metavar": "NAME",
        "help": "architecture of the network (default: the one that the model file names)",
    },
    "--model": {
        "metavar": "FILE",
        "help": "checkpoint, .onnx or .mge file: a file or folder, an http(s) URL, or SOURCE:NAME "
        "of published weights (default: the newest best.pkl under checkpoints/)",
    },
    "--entry": {
        "metavar": "NAME",
        "help": "set of weights to take from a file of several, such as state_dict_ema (default: "
        "the one that its source evaluates, else the averaged one)",
    },
    "--data": {
        "metavar": "DIR",
        "help": "folder with val/CLASS/IMAGE, or with valid/, validation/ or test/; or an archive "
        "or another form that docs/data.md lists",
    },
    "--val-list": {
        "metavar": "FILE",
        "help": "file that labels validation images which are in no class folders: lines NAME "
        "LABEL, Kaggle's LOC_val_solution.csv, or ImageNet's development kit (default: a file of "
        "one of these kinds beside the images)",
    },
    "--calibration": {
        "metavar": "DIR",
        "help": "folder or archive of images to calibrate the int8 network on",
    },
    "--images": {
        "type": COUNT,
        "metavar": "N",
        "help": "number of calibration images, taken evenly from the sorted files",
    },
    "--size": {
        "type": number(int, 1, 4096),
        "metavar": "PIXELS",
        "help": "side of the square input images in pixels (default: the model file's)",
    },
    "--stride": {"type": int, "choices": (8, 16, 32)},
    "--crop-ratio": {
        "type": number(float, 0, 1, open_low=True),
        "metavar": "R",
        "help": "side of the centre crop divided by the short side of the resized image "
        "(default: the model file's)",
    },
    "--color": {
        "choices": ("rgb", "bgr"),
        "help": "colour order of the images that the weights expect: %(choices)s",
    },
    "--mean": {
        "type": number(float, -255, 255),
        "nargs": 3,
        "metavar": ("R", "G", "B"),
        "help": "mean of each channel in the colour order of the weights, for pixels from 0 to 1 "
        "or, where a value is above 1, from 0 to 255",
    },
    "--std": {
        "type": number(float, 0, open_low=True),
        "nargs": 3,
        "metavar": ("R", "G", "B"),
        "help": "standard deviation of each channel, in the order and for the pixels of --mean",
    },
    "--interpolation": {
        "choices": ("bilinear", "bicubic"),
        "help": "interpolation by which images are resized: %(choices)s",
    },
    "--resize-backend": {
        "choices": ("pillow", "opencv"),
        "help": "library that resizes the images: pillow, antialiased, as PyTorch and timm do it, "
        "or opencv, as BaseCls does it",
    },
    "--class-names": {
        "metavar": "FILE",
        "help": "text file with a class name in each line, or JSON file with a list of them",
    },
    "--val-batch-size": {
        "type": COUNT,
        "default": 100,
        "metavar": "IMAGES",
        "help": "number of images in a batch of the evaluation",
    },
    "--workers": {
        "type": number(int, 0),
        "default": 2,
        "metavar": "N",
        "help": "number of processes that prepare images; 0: the command's own process does it",
    },
    "--stall-timeout": {
        "type": number(float, 0),
        "default": 120.0,
        "metavar": "SECONDS",
        "help": "stop, naming the file, when reading one image takes longer than this, as on a "
        "network drive that is gone; 0: wait forever",
    },
    "--skip-bad-images": {
        "action": "store_true",
        "help": "leave out images that cannot be decoded and report how many, instead of stopping",
    },
    "--ngpus": {
        "type": COUNT,
        "default": 1,
        "metavar": "N",
        "help": "number of GPUs of this host to share the work between (not tested), or of CPU "
        "processes where there is no GPU",
    },
    "--print-freq": {
        "type": COUNT,
        "default": 20,
        "metavar": "BATCHES",
        "help": "number of batches from one progress line to the next, where the output is not a "
        "terminal",
    },
    "--json": {"action": "store_true", "help": "print the results as JSON"},
}


# What a file of weights may leave unsaid; `weights.stated_preprocessing.of_flags` reads them.
PREPROCESSING = ("--color", "--mean", "--std", "--interpolation", "--resize-backend",
                 "--crop-ratio", "--class-names")  # fmt: skip


def add_preprocessing_flags(parser: argparse.ArgumentParser, *but: str) -> None:
    """Add a group with the flags of `PREPROCESSING`, without those `but`, to a parser."""
    group = parser.add_argument_group(
        "preprocessing of the images, instead of what the model file says or is known for"
    )
    add_flags(group, *(flag for flag in PREPROCESSING if flag not in but))


def refuse_without_model(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error for flags about a model file where --model is not given."""
    flags = ("--entry", *PREPROCESSING)
    given = [flag for flag in flags if getattr(args, flag[2:].replace("-", "_")) is not None]
    if args.model is None and given:
        parser.error(f"give a checkpoint by --model, or leave {', '.join(given)} out")


def add_flags(parser: argparse._ActionsContainer, *flags: str, **changes: Any) -> None:
    """Add `SHARED_FLAGS` to a parser or to a group of it.

    Args:
        parser: what `add_argument` is called on.
        flags: keys of `SHARED_FLAGS`.
        changes: arguments of `add_argument` that replace the shared ones, for all of `flags`.
    """
    for flag in flags:
        parser.add_argument(flag, **{**SHARED_FLAGS[flag], **changes})
