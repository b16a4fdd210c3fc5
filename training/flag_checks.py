"""What the flags of train.py must not be together, each said in a sentence.

Every function ends the program with status 2 where it finds something.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from data import by_epoch

from . import flags


def contradictions(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
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


def effects(args: argparse.Namespace, typed: set[str], parser: argparse.ArgumentParser) -> None:
    """End the program where a typed flag has no effect for want of another."""
    for name, needed, is_there in _NEEDS:
        if name in typed and not is_there(args):
            flag = "--" + name.replace("_", "-")
            parser.error(f"{flag} has an effect {needed} only; change that, or leave {flag} out")


def rates(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
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


def epochs(
    args: argparse.Namespace, owners: Sequence[type], parser: argparse.ArgumentParser
) -> None:
    """End the program where a setting is to change in an epoch that the run does not have.

    `owners` are the dataclasses whose fields are the settings.
    """
    for owner in owners:
        for field in flags.described(owner):
            value = vars(args)[flags.destination(field)]
            last = by_epoch.starts(value)[-1] if field.metadata["by_epoch"] else 0
            if last >= args.epochs:
                name = flags.destination(field).replace("_", "-")
                parser.error(
                    f"--{name} {value} changes after epoch {last}, but there are {args.epochs} "
                    f"--epochs; give more, or another --{name}"
                )
