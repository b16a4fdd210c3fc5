"""The command line of train.py: its flags, and what they mean together.

Nothing here imports MegEngine, except to check the name of an architecture.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import cli
from data import by_epoch
from data.augment import Augmentation

from . import flags, recipe
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
    check(args, parser)
    if args.resume in (None, "auto"):  # else they must be those that the run had
        _check_effect(args, typed, parser)
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


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program where flags contradict each other."""
    if args.rank >= args.world_size:
        parser.error(
            f"--rank {args.rank} is not below --world-size {args.world_size}; hosts are numbered "
            f"from 0 to {args.world_size - 1}"
        )
    if args.warmup_epochs >= args.epochs:
        parser.error(
            f"--warmup-epochs {args.warmup_epochs:g} leaves nothing of --epochs {args.epochs}; "
            "give a shorter warmup or more epochs"
        )
    if args.val_list is not None and (args.data is None or args.holdout is not None):
        parser.error("--val-list labels the images in --data; give --data, and no --holdout")
    if args.holdout is not None and args.data is None:
        parser.error("--holdout takes images from the folder of --data; give --data too")
    if args.extend and not args.resume:
        parser.error("--extend continues a run; give --resume too")
    if args.entry and not args.pretrained:
        parser.error(
            "--entry chooses one of several sets of weights in the --pretrained file; give "
            "--pretrained too"
        )
    if args.class_names and not args.pretrained:
        parser.error(
            "--class-names has the class names of the --pretrained weights; give these too"
        )
    if args.in_chans not in (None, 1, 3):
        parser.error(f"--in-chans {args.in_chans}: an image file gives 3 colours or 1 grey value")
    if args.find_lr and args.resume:
        parser.error(
            "--find-lr tries learning rates from the start of a run; leave --resume out, and give "
            "another --tag"
        )
    if args.freeze and not (args.pretrained or args.resume):
        parser.error(
            "--freeze trains the classifier alone; give the weights of the network by --pretrained"
        )
    if args.qat and not (args.pretrained or args.resume):
        parser.error("--qat fine-tunes a trained network; give its weights by --pretrained")
    if args.qat and (args.freeze or args.precise_bn or args.sync_bn or args.low_memory or args.amp):
        parser.error(
            "--qat trains the fused network, all of it, as int8 numbers kept in float32: leave "
            "--freeze, --precise-bn, --sync-bn, --low-memory and --amp out"
        )
    if args.qat and args.drop_path:
        parser.error("--qat trains the fused network, without --drop-path; leave that out")
    if args.nesterov and args.momentum == 0:
        parser.error("--nesterov needs a --momentum above 0")
    if args.nesterov and args.optimizer != "sgd":
        parser.error(f"--nesterov is for --optimizer sgd, and not for {args.optimizer}")
    if args.accumulate > args.batch_size:
        parser.error(
            f"--accumulate {args.accumulate} is more than the {args.batch_size} images of a batch; "
            f"give at most {args.batch_size}"
        )
    if (args.schedule == "step") != bool(args.milestones):
        parser.error(
            "--schedule step and --milestones, the epochs after which it lowers the learning rate, "
            "need each other; give both or neither"
        )
    if args.milestones and max(args.milestones) >= args.epochs:
        parser.error(
            f"--milestones {max(args.milestones):g} is never reached in --epochs {args.epochs}; "
            f"give epochs below {args.epochs}"
        )
    if args.warmup_lr is not None and args.warmup_epochs == 0:
        parser.error("--warmup-lr needs --warmup-epochs")
    if args.freeze and (args.agc or args.precise_bn):
        parser.error(
            "--freeze trains the classifier alone, which --agc leaves out, and keeps the "
            "statistics that --precise-bn replaces; leave these out"
        )
    if args.find_lr and args.show_samples is not None:
        parser.error("--find-lr and --show-samples are run one at a time; leave one of them out")
    _check_epochs(args, parser)
    for epoch in range(args.epochs + 1) if args.crop_scale else ():
        low, high = by_epoch.value_at(tuple(args.crop_scale), epoch, args.epochs)
        if low > high:
            text = " ".join(f"{v:g}" if isinstance(v, float) else v for v in args.crop_scale[::-1])
            parser.error(f"--crop-scale takes the lower number first: --crop-scale {text}")


def _mixes(alpha: float | str) -> bool:
    return any(by_epoch.values(alpha))


# flags that have no effect alone, what they need, and whether it is there
_NEEDS: list[tuple[str, str, Callable[[argparse.Namespace], bool]]] = [
    ("distillation", "with --teacher", lambda args: args.teacher is not None),
    ("distillation_alpha", "with --teacher", lambda args: args.teacher is not None),
    (
        "distillation_temperature",
        "with --distillation soft",
        lambda args: args.teacher is not None and args.distillation == "soft",
    ),
    ("step_factor", "with --schedule step", lambda args: args.schedule == "step"),
    ("min_lr", "with --schedule cosine", lambda args: args.schedule == "cosine"),
    ("momentum", "with --optimizer sgd or muon", lambda args: args.optimizer in ("sgd", "muon")),
    (
        "mix_prob",
        "with --mixup or --cutmix",
        lambda args: _mixes(args.mixup) or _mixes(args.cutmix),
    ),
    (
        "mix_switch_prob",
        "with --mixup and --cutmix",
        lambda args: _mixes(args.mixup) and _mixes(args.cutmix),
    ),
    (
        "erasing_mode",
        "with --random-erasing",
        lambda args: any(by_epoch.values(args.random_erasing)),
    ),
    (
        "erasing_count",
        "with --random-erasing",
        lambda args: any(by_epoch.values(args.random_erasing)),
    ),
    (
        "crop_scale",
        "with --padding-crop 0",
        lambda args: not any(by_epoch.values(args.padding_crop or 0)),
    ),
    ("drop_path", "without --freeze", lambda args: not args.freeze),
    ("layer_decay", "without --freeze", lambda args: not args.freeze),
    ("sync_bn", "without --freeze", lambda args: not args.freeze),
    ("custwd", "without --freeze", lambda args: not args.freeze),
    ("low_memory", "without --freeze", lambda args: not (args.freeze and args.low_memory)),
]


def _check_effect(
    args: argparse.Namespace, typed: set[str], parser: argparse.ArgumentParser
) -> None:
    """End the program where a typed flag has no effect for want of another, or of a lower value."""
    for name, needed, is_there in _NEEDS:
        if name in typed and not is_there(args):
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag} has an effect {needed} only; change that, or leave {flag} out")
    if args.resume is None:  # a run goes on with what it had
        _check_rates(args, parser)


def _check_rates(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program where the learning rate would rise in its cosine or fall in its warm-up."""
    rate = args.lr * args.batch_size / 256
    of_rate = f"the learning rate of {rate:g} (--lr {args.lr:g} x {args.batch_size}/256)"
    if args.schedule == "cosine" and args.min_lr > rate:
        parser.error(
            f"--min-lr {args.min_lr:g} is above {of_rate} at which the cosine begins; give a lower "
            "one"
        )
    if args.warmup_epochs and args.warmup_lr is not None and args.warmup_lr > rate:
        parser.error(
            f"--warmup-lr {args.warmup_lr:g} is above {of_rate} at which the warm-up ends; give a "
            "lower one"
        )


def _check_epochs(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program where a setting is to change in an epoch that the run does not have."""
    for owner in OWNERS:
        for field in flags.described(owner):
            value = vars(args)[flags.destination(field)]
            last = by_epoch.starts(value)[-1] if field.metadata["by_epoch"] else 0
            if last >= args.epochs:
                name = flags.destination(field).replace("_", "-")
                parser.error(
                    f"--{name} {value} changes after epoch {last}, but there are {args.epochs} "
                    f"--epochs; give more, or another --{name}"
                )


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
