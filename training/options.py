"""The command line of train.py: its flags, and what they mean together.

Nothing here imports MegEngine, except to check the name of an architecture.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import cli
from data import by_epoch
from data.augment import Augmentation

from . import flag_checks, flags, recipe
from .run_options import DEFAULT_ARCH, PREPROCESSING, RunOptions
from .settings import Settings

OWNERS = [Settings, Augmentation, RunOptions]
HEADINGS = {
    "what most runs need": "arch data epochs batch_size lr ngpus tag resume pretrained recipe",
    "instead of training": "",
    "network and data": "size crop_ratio",
    PREPROCESSING: "",
    "optimization": "",
    "augmentation": "",
    "learning from a teacher": "",
    "running": "",
    "several processes": "",
    "on GPUs only (not tested: nothing here has been run on a GPU)": "dtr",
}
QAT_RATE = 0.01  # of the usual learning rate

EXAMPLES = """\
  python train.py --arch RepVGGA0
  python train.py --data imagenet --arch RepVGGA0 --batch-size 256 --epochs 120 --tag paper
  python train.py --data imagenet --arch RepVGGA0 --epochs 120 --tag paper --resume auto
  python train.py --data imagenet --arch RepViTM0_9 --optimizer adamw --agc 0.02 --ema 0.9999 \\
      --warmup-epochs 5 --warmup-lr 1e-6 --min-lr 1e-5 --teacher RepVGGB3:b3.pkl
  python train.py --data imagenet --arch RepVGGA1 --recipe repvgg_paper --ngpus 8
  python train.py --data imagenet --arch RepVGGA0-qa --pretrained best.pkl --qat --tag int8
"""


def parse(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments of a run: typed flags, then those of a recipe, then defaults.

    Ends the program with status 2 where flags contradict each other; raises UserError for a recipe
    that cannot be used.
    """
    parser = cli.ArgumentParser(description, EXAMPLES + _recipes())
    flags.add(parser, OWNERS, HEADINGS)
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    typed = _typed(parser, argv)
    if args.recipe is not None:
        args = parser.parse_args(recipe.arguments(args.recipe, parser) + argv)
    fill_in(args)
    flag_checks.contradictions(args, parser)
    flag_checks.epochs(args, OWNERS, parser)
    if args.resume in (None, "auto"):  # else they must be those that the run had
        flag_checks.effects(args, typed, parser)
        flag_checks.rates(args, parser)
    check_architecture(args, args.arch if "arch" in typed else None, parser)
    return args


def _typed(parser: argparse.ArgumentParser, argv: Sequence[str]) -> set[str]:
    """Return the destinations of the flags that are typed, whatever their values."""
    unset = object()
    marked = argparse.Namespace(**dict.fromkeys(vars(parser.parse_args([])), unset))
    parser.parse_args(argv, marked)
    return {name for name, value in vars(marked).items() if value is not unset}


def _recipes() -> str:
    """Return the part of the help that lists the recipes."""
    names = textwrap.wrap(", ".join(recipe.names()), width=98)
    return "\nrecipes:\n" + "\n".join("  " + line for line in names)


def fill_in(args: argparse.Namespace) -> None:
    """Set the defaults that depend on other flags."""
    holds = {
        "": True,
        "digits": args.data is None,
        "adamw": args.optimizer in ("adamw", "muon"),
        "--qat": args.qat,
    }
    missing = {name for name, value in vars(args).items() if value is None}
    for owner in OWNERS:
        for field in flags.described(owner):
            for situation, value in (field.metadata["defaults"] or {}).items():
                if flags.destination(field) in missing and holds[situation]:
                    setattr(args, flags.destination(field), value)
    if args.qat and "lr" in missing:
        args.lr *= QAT_RATE
    if args.epochs == 1 and "warmup_epochs" in missing:
        args.warmup_epochs = 0.0
    if args.arch is None:
        args.arch = DEFAULT_ARCH


def check_architecture(
    args: argparse.Namespace, typed: str | None, parser: argparse.ArgumentParser
) -> None:
    """Make `args.arch` canonical; end the program where there is no such architecture.

    Raises UserError where the wrong name is a recipe's, and not the one `typed`. Only this imports
    MegEngine, which takes a second: what prints settings alone goes without it for the default and
    the names in this project's own recipes, which tests check.
    """
    from_recipe = typed is None and args.recipe is not None
    is_our_own = typed is None and (args.recipe is None or args.recipe in recipe.names())
    if args.list_archs or (args.show_config and is_our_own):
        return
    try:
        args.arch = cli.arch_name(args.arch)
    except argparse.ArgumentTypeError as error:
        if from_recipe:
            raise recipe.wrong_value(args.recipe, "arch", str(error)) from None
        parser.error(f"argument --arch: {error}")


def augmentation(args: argparse.Namespace, usual: Augmentation) -> Augmentation:
    """Return the augmentation that the flags ask for, `usual` being the data set's own."""
    given = _values(args, Augmentation)
    given = {name: value for name, value in given.items() if value is not None}
    if by_epoch.changes(args.size):
        given["size"] = args.size
    if {"crop_scale", "padding_crop"} & given.keys():
        given["affine"] = False
    return replace(usual, **given)


def settings(args: argparse.Namespace, teacher: str | None) -> Settings:
    """Return the settings of the loop; `teacher` is the name of the network it learns from."""
    values = _values(args, Settings) | {"teacher": teacher}
    values["lr"] = args.lr * args.batch_size / 256
    values["milestones"] = tuple(args.milestones or ())
    return Settings(**values)


def _values(args: argparse.Namespace, owner: type) -> dict[str, Any]:
    """Return the parsed value of each field of a dataclass that has a flag, lists as tuples."""
    values = {field.name: vars(args)[flags.destination(field)] for field in flags.described(owner)}
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
