"""The command line of train.py: its flags, and what they mean together."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cli
import utils
from data import augment, policies
from data.augment import Augmentation

from . import recipe
from .loop import Settings
from .losses import DISTILLATIONS
from .optimizer import DECAY_RULES, OPTIMIZERS
from .schedule import SCHEDULES

EXAMPLES = """\
  python train.py --arch RepVGGA0
  python train.py --data imagenet --arch RepVGGA0 --batch-size 256 --epochs 120 --tag paper
  python train.py --data imagenet --arch RepVGGA0 --epochs 120 --tag paper --resume auto
  python train.py --data imagenet --arch RepViTM0_9 --optimizer adamw --agc 0.02 --ema 0.9999 \\
      --warmup-epochs 5 --warmup-lr 1e-6 --min-lr 1e-5 --teacher RepVGGB3:b3.pkl
  python train.py --data imagenet --arch RepVGGA1 --recipe repvgg_paper --ngpus 8
  python train.py --data imagenet --arch RepVGGA0-qa --pretrained best.pkl --qat --tag int8
"""

# defaults that depend on the data: on the digits, and on a folder of images
DIGITS = {"epochs": 12, "batch_size": 64, "size": 32, "crop_ratio": 1.0}
FOLDER = {"epochs": 120, "batch_size": 256, "size": 224, "crop_ratio": 0.875}
# with --qat, which starts from a trained network
QAT = {"epochs": 3}
QAT_RATE = 0.01  # of the usual learning rate
# and on the optimizer
RATES = {
    "sgd": {"lr": 0.1, "weight_decay": 1e-4},
    "adamw": {"lr": 5e-4, "weight_decay": 0.025},  # RepViT's
}


SWITCH = argparse.BooleanOptionalAction
COUNT, REAL = cli.number(int, 1), cli.number(float, 0)
PART = cli.number(float, 0, 1)


def parse(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The settings of a run: typed flags, then those of a recipe, then defaults.

    Ends the program with status 2 where flags contradict each other; raises UserError for a recipe
    that cannot be used.
    """
    parser = cli.ArgumentParser(description, EXAMPLES)
    add_start(parser)
    add_network(parser)
    add_optimization(parser)
    add_augmentation(parser)
    add_teacher(parser)
    add_running(parser)
    add_workers(parser)
    argv = list(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(argv)
    if args.recipe is not None:
        args = parser.parse_args(recipe.arguments(args.recipe, parser) + argv)
    fill_in(args)
    check(args, parser)
    return args


def add_start(parser: argparse.ArgumentParser) -> None:
    """What may stand before everything else."""
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="flags from recipes/NAME.conf, or from a file; flags that are typed win. There are: "
        + ", ".join(recipe.names()),
    )
    parser.add_argument(
        "--show-config", action="store_true", help="print every setting, as a recipe, and end"
    )
    parser.add_argument(
        "--find-lr",
        action="store_true",
        help="try learning rates from very small to too large on 100 steps, write find_lr.csv and "
        "find_lr.png, suggest one and end",
    )


def add_network(parser: argparse.ArgumentParser) -> None:
    """What is trained, and on what."""
    what = parser.add_argument_group("network and data")
    what.add_argument(
        "--arch",
        type=cli.arch_name,
        default="RepVGGA0",
        metavar="NAME",
        help="see `python -c 'import models; print(models.list_models())'`",
    )
    what.add_argument(
        "--data",
        metavar="DIR",
        help="folder with train/CLASS/IMAGE and val/CLASS/IMAGE (or test/); without it, the digits",
    )
    what.add_argument(
        "--size", type=COUNT, metavar="PIXELS", help="side of the input (default: 224; digits: 32)"
    )
    what.add_argument(
        "--crop-ratio",
        type=cli.number(float, 0, 1, open_low=True),
        metavar="R",
        help="validation: side of the centre crop over the short side (default: 0.875; digits: 1)",
    )
    what.add_argument(
        "--pretrained",
        metavar="FILE",
        help="start from these weights: any file or URL that convert_pretrained_weight.py reads; "
        "with another class count the classifier starts anew",
    )
    what.add_argument(
        "--freeze", action="store_true", help="train the classifier alone; needs --pretrained"
    )
    what.add_argument(
        "--qat",
        action="store_true",
        help="quantization-aware training: fine-tune the fused network with the rounding of its "
        "int8 form, for quantize.py; needs --pretrained",
    )
    what.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="leave corrupt images out, with a count, instead of stopping",
    )


def add_optimization(parser: argparse.ArgumentParser) -> None:
    """How the weights move."""
    how = parser.add_argument_group("optimization")
    how.add_argument(
        "--epochs", type=COUNT, help="passes over the data (default: 120; digits: 12; --qat: 3)"
    )
    how.add_argument(
        "--batch-size",
        type=COUNT,
        metavar="IMAGES",
        help="images a step, over all workers together (default: 256; digits: 64)",
    )
    how.add_argument(
        "--accumulate",
        type=COUNT,
        default=1,
        metavar="PARTS",
        help="take a batch in so many parts and add their gradients up: less memory, the same "
        "step, but batch norms see a part at a time",
    )
    how.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="how weights move")
    how.add_argument(
        "--lr",
        type=cli.number(float, 0, open_low=True),
        help="learning rate for a batch of 256; scaled with the batch size (default: 0.1; "
        "adamw: 0.0005; --qat: a hundredth)",
    )
    how.add_argument("--momentum", type=PART, default=0.9, help="of SGD")
    how.add_argument("--nesterov", action=SWITCH, default=False, help="Nesterov's momentum; SGD")
    how.add_argument(
        "--weight-decay",
        type=REAL,
        help="of what --decay-rule names (default: 1e-4; adamw: 0.025, which is decoupled)",
    )
    how.add_argument(
        "--decay-rule",
        choices=DECAY_RULES,
        default="repvgg",
        help="what decays: repvgg: kernels and the scales of identity branches; timm: kernels; "
        "all: biases and batch norms too",
    )
    how.add_argument(
        "--custwd",
        action="store_true",
        help="RepVGG's custom L2: decay the equivalent kernel instead of the branches'",
    )
    how.add_argument(
        "--label-smoothing",
        type=PART,
        default=0.0,
        metavar="P",
        help="probability spread over all classes",
    )
    how.add_argument(
        "--schedule",
        choices=SCHEDULES,
        default="cosine",
        help="of the learning rate after the warm-up",
    )
    how.add_argument(
        "--min-lr",
        type=REAL,
        default=0.0,
        metavar="LR",
        help="where the cosine ends; not scaled with the batch size",
    )
    how.add_argument(
        "--milestones",
        type=REAL,
        nargs="+",
        metavar="E",
        help="epochs after which --schedule step multiplies the rate by --step-factor",
    )
    how.add_argument("--step-factor", type=REAL, default=0.1, metavar="F", help="at a milestone")
    how.add_argument(
        "--warmup-epochs",
        type=REAL,
        default=None,
        metavar="E",
        help="epochs of linear warm-up (default: 0; digits: 1)",
    )
    how.add_argument(
        "--warmup-lr",
        type=REAL,
        metavar="LR",
        help="where the warm-up starts; not scaled with the batch size (default: one step's rise)",
    )
    how.add_argument(
        "--clip-norm",
        type=REAL,
        default=0.0,
        metavar="NORM",
        help="scale the gradients down to this common L2 norm; 0: never",
    )
    how.add_argument(
        "--agc",
        type=REAL,
        default=0.0,
        metavar="FACTOR",
        help="adaptive clipping: each unit's gradient to FACTOR times the norm of its weights "
        "(0.01 to 0.02 is usual), but for the classifier; 0: never",
    )
    how.add_argument(
        "--ema",
        type=PART,
        default=0.0,
        metavar="DECAY",
        help="also average the weights over the steps (0.9999 is usual), evaluate the average, and "
        "save it as best.pkl; 0: no average",
    )
    how.add_argument(
        "--precise-bn",
        type=cli.number(int, 0),
        default=0,
        metavar="IMAGES",
        help="before an evaluation take the batch norms' statistics over so many training images "
        "(8192 is usual); 0: their running averages",
    )
    how.add_argument(
        "--seed",
        type=cli.number(int, 0, 2**31 - 1),
        default=0,
        help="of weights, order and augmentation",
    )


def add_teacher(parser: argparse.ArgumentParser) -> None:
    """Distillation."""
    learn = parser.add_argument_group("learning from a teacher")
    learn.add_argument(
        "--teacher",
        metavar="ARCH:FILE",
        help="a trained network for the same classes: any file or URL that "
        "convert_pretrained_weight.py reads",
    )
    learn.add_argument(
        "--distillation",
        choices=DISTILLATIONS,
        default="hard",
        help="towards the teacher's best class, or towards its distribution",
    )
    learn.add_argument(
        "--distillation-alpha",
        type=PART,
        default=0.5,
        metavar="A",
        help="share of the teacher in the loss; the labels have the rest",
    )
    learn.add_argument(
        "--distillation-temperature",
        type=cli.number(float, 0, open_low=True),
        default=1.0,
        metavar="T",
        help="of both distributions in soft distillation",
    )


def add_running(parser: argparse.ArgumentParser) -> None:
    """Where results go, and what a run takes of the machine."""
    run = parser.add_argument_group("running")
    run.add_argument(
        "--save",
        metavar="DIR",
        type=Path,
        default=Path("checkpoints"),
        help="results go to DIR/ARCH/TAG",
    )
    run.add_argument("--tag", help="name of the run (default: date and time)")
    run.add_argument(
        "--resume",
        metavar="FILE",
        help="a latest.pkl to go on from, exactly; or 'auto': the newest one under "
        "DIR/ARCH (with --tag: under that), or a new run if there is none",
    )
    run.add_argument(
        "--save-freq",
        type=cli.number(int, 0),
        default=500,
        metavar="STEPS",
        help="also save latest.pkl every so many steps; 0: after epochs only",
    )
    run.add_argument(
        "--print-freq", type=COUNT, default=20, metavar="STEPS", help="steps between log lines"
    )
    run.add_argument(
        "--val-batch-size",
        type=COUNT,
        default=100,
        metavar="IMAGES",
        help="images at once in validation",
    )
    run.add_argument(
        "--low-memory",
        action=SWITCH,
        help="compute activations again instead of keeping them: the same result from a third of "
        "the memory, in about twice the time (default: on a CPU whose memory would not do)",
    )
    run.add_argument(
        "--dtr",
        metavar="SIZE",
        help="GPUs: above so much memory, such as 5GB, drop activations and compute them again",
    )
    run.add_argument("--amp", action="store_true", help="GPUs: half precision where it is safe")
    run.add_argument(
        "--workers",
        type=cli.number(int, 0),
        default=2,
        metavar="N",
        help="processes that decode and augment images; 0: none but this one",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Processes that train together; see launch.py."""
    together = parser.add_argument_group("several processes")
    together.add_argument(
        "--ngpus",
        type=COUNT,
        default=1,
        metavar="N",
        help="GPUs of this host; without a GPU, CPU workers, which MPI joins. Each batch is shared "
        "among them. Within an mpiexec of your own its processes are the workers",
    )
    together.add_argument(
        "--sync-bn",
        action="store_true",
        help="batch-norm statistics over the images of all workers, not over each one's own",
    )
    together.add_argument(
        "--world-size", type=COUNT, default=1, metavar="HOSTS", help="hosts with --ngpus GPUs each"
    )
    together.add_argument(
        "--rank",
        type=cli.number(int, 0),
        default=0,
        metavar="HOST",
        help="number of this host, from 0",
    )
    together.add_argument(
        "--dist-addr", default="localhost", metavar="ADDRESS", help="of host 0, for the others"
    )
    together.add_argument(
        "--dist-port", type=cli.number(int, 1, 65535), default=23456, metavar="PORT", help="there"
    )


def fill_in(args: argparse.Namespace) -> None:
    """The defaults that depend on other flags."""
    defaults = (DIGITS if args.data is None else FOLDER) | RATES[args.optimizer]
    if args.qat:
        defaults |= QAT | {"lr": QAT_RATE * defaults["lr"]}
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.warmup_epochs is None:
        fresh_digits = args.data is None and args.epochs > 1 and not args.qat
        args.warmup_epochs = 1.0 if fresh_digits else 0.0


def check(args: argparse.Namespace, parser: argparse.ArgumentParser) -> None:
    """End the program where flags contradict each other."""
    if args.rank >= args.world_size:
        parser.error(f"--rank {args.rank} is not below --world-size {args.world_size}")
    if args.warmup_epochs >= args.epochs:
        parser.error(
            f"--warmup-epochs {args.warmup_epochs:g} leaves nothing of --epochs {args.epochs}"
        )
    if args.freeze and not (args.pretrained or args.resume):
        parser.error("--freeze trains the classifier alone, so it needs weights by --pretrained")
    if args.qat and not (args.pretrained or args.resume):
        parser.error("--qat fine-tunes a trained network, so it needs weights by --pretrained")
    if args.qat and (args.freeze or args.precise_bn or args.sync_bn or args.low_memory or args.amp):
        parser.error(
            "--qat trains the fused network, all of it, as int8 numbers kept in float32: leave "
            "--freeze, --precise-bn, --sync-bn, --low-memory and --amp away"
        )
    if args.nesterov and args.momentum == 0:
        parser.error("--nesterov needs a --momentum above 0")
    if args.nesterov and args.optimizer != "sgd":
        parser.error(f"--nesterov is for --optimizer sgd, and not for {args.optimizer}")
    if args.accumulate > args.batch_size:
        parser.error(f"--accumulate {args.accumulate} is more than the {args.batch_size} images")
    if (args.schedule == "step") != bool(args.milestones):
        parser.error("--schedule step and --milestones, the epochs where it falls, need each other")
    if args.warmup_lr is not None and args.warmup_epochs == 0:
        parser.error("--warmup-lr needs --warmup-epochs")
    if args.freeze and (args.agc or args.precise_bn):
        parser.error(
            "--freeze trains the classifier alone, which --agc leaves out, and keeps the "
            "statistics that --precise-bn replaces; leave these away"
        )


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    """The flags that `augmentation` reads."""
    usual = Augmentation()
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--crop-scale",
        type=cli.number(float, 0, 1, open_low=True),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="part of the area that the random resized crop takes (default: 0.08 1)",
    )
    group.add_argument(
        "--padding-crop",
        type=cli.number(int, 0),
        metavar="PIXELS",
        help="instead: pad by so many black pixels and crop at random; 4 is usual for CIFAR-10",
    )
    group.add_argument(
        "--random-interpolation",
        action="store_true",
        help="bilinear or bicubic by chance",
    )
    group.add_argument(
        "--flip",
        type=PART,
        metavar="P",
        help="probability of mirroring left and right (default: 0.5; digits: 0)",
    )
    group.add_argument(
        "--color-jitter",
        type=REAL,
        default=usual.color_jitter,
        metavar="X",
        help="brightness, contrast and saturation by a factor of 1-X to 1+X; "
        "not beside --auto-augment",
    )
    group.add_argument(
        "--auto-augment",
        type=policy_name,
        default=usual.auto_augment,
        metavar="POLICY",
        help="none, v0 or original (AutoAugment), or RandAugment as rand-m9-n2-mstd0.5-inc1: "
        "level, operations, deviation of the level, stronger with the level",
    )
    group.add_argument(
        "--random-erasing",
        type=PART,
        default=usual.random_erasing,
        metavar="P",
        help="probability of erasing a rectangle",
    )
    group.add_argument(
        "--erasing-mode",
        choices=augment.ERASING_MODES,
        default=usual.erasing_mode,
        help="with the mean colour, a random one, or a random one a pixel",
    )
    group.add_argument(
        "--erasing-count",
        type=COUNT,
        default=usual.erasing_count,
        metavar="N",
        help="rectangles at most",
    )
    group.add_argument(
        "--mixup", type=REAL, default=usual.mixup, metavar="ALPHA", help="mixup's Beta; 0: off"
    )
    group.add_argument(
        "--cutmix", type=REAL, default=usual.cutmix, metavar="ALPHA", help="cutmix's Beta; 0: off"
    )
    group.add_argument(
        "--mix-prob",
        type=PART,
        default=usual.mix_prob,
        metavar="P",
        help="probability that a batch is mixed",
    )
    group.add_argument(
        "--mix-switch-prob",
        type=PART,
        default=usual.mix_switch_prob,
        metavar="P",
        help="probability of cutmix and not mixup where both are on",
    )
    group.add_argument(
        "--repeated-augmentation",
        type=COUNT,
        default=usual.repeats,
        metavar="N",
        help="times that each of an epoch's images appears in it, differently augmented; "
        "the epoch has fewer different images then",
    )
    group.add_argument(
        "--show-samples",
        type=Path,
        nargs="?",
        const=Path("samples.png"),
        metavar="FILE",
        help="write a picture of what the network would see (default: samples.png), and end",
    )


def policy_name(text: str) -> str:
    """An argparse type: the name of an augmentation policy."""
    try:
        policies.policy(text)
    except utils.UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    return text


def augmentation(args: argparse.Namespace, usual: Augmentation) -> Augmentation:
    """What the flags say; `usual` is for those that depend on the data and are not given."""
    if args.crop_scale and args.crop_scale[0] > args.crop_scale[1]:
        raise utils.UserError(
            "--crop-scale takes the lower number first: "
            f"--crop-scale {args.crop_scale[1]:g} {args.crop_scale[0]:g}"
        )
    crop = args.crop_scale is not None or args.padding_crop is not None
    return replace(
        usual,
        crop_scale=tuple(args.crop_scale or usual.crop_scale),
        padding_crop=args.padding_crop or 0,
        affine=usual.affine and not crop,
        flip=usual.flip if args.flip is None else args.flip,
        random_interpolation=args.random_interpolation,
        color_jitter=args.color_jitter,
        auto_augment=args.auto_augment,
        random_erasing=args.random_erasing,
        erasing_mode=args.erasing_mode,
        erasing_count=args.erasing_count,
        mixup=args.mixup,
        cutmix=args.cutmix,
        mix_prob=args.mix_prob,
        mix_switch_prob=args.mix_switch_prob,
        repeats=args.repeated_augmentation,
    )


def settings(args: argparse.Namespace, teacher: str | None) -> Settings:
    """What the flags say about the loop; `teacher` is the name of the network it learns from."""
    return Settings(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=args.lr * args.batch_size / 256,
        optimizer=args.optimizer,
        momentum=args.momentum,
        nesterov=args.nesterov,
        weight_decay=args.weight_decay,
        decay_rule=args.decay_rule,
        custom_l2=args.custwd,
        label_smoothing=args.label_smoothing,
        schedule=args.schedule,
        min_lr=args.min_lr,
        milestones=tuple(args.milestones or ()),
        step_factor=args.step_factor,
        warmup_epochs=args.warmup_epochs,
        warmup_lr=args.warmup_lr,
        accumulate=args.accumulate,
        clip_norm=args.clip_norm,
        agc=args.agc,
        ema=args.ema,
        precise_bn=args.precise_bn,
        teacher=teacher,
        distillation=args.distillation,
        distillation_alpha=args.distillation_alpha,
        distillation_temperature=args.distillation_temperature,
        seed=args.seed,
        sync_bn=args.sync_bn,
        amp=args.amp,
        freeze=args.freeze,
        qat=args.qat,
    )
