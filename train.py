#!/usr/bin/env python
"""Train a re-parameterizable network.

Without --data it trains on the handwritten digits that come with scikit-learn, so that everything
can be tried at once. Results go to SAVE/ARCH/TAG: latest.pkl (to resume from), best.pkl (to test
and to deploy), metrics.csv, curves.png, log.txt, run.json and events for TensorBoard.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import utils  # isort: skip  (before MegEngine: it sets the process environment)

import megengine as mge
import megengine.module as M
import numpy as np

import models
from data import augment, datasets, mixing, policies
from data.augment import Augmentation
from data.contact_sheet import contact_sheet
from data.loader import Loader
from data.transforms import Preprocessing
from training import checkpoint, find_lr, gpu, launch, low_memory, recipe, teacher
from training.distributed import Workers
from training.loop import Interrupted, Settings, Trainer
from training.losses import DISTILLATIONS
from training.optimizer import DECAY_RULES, OPTIMIZERS
from training.run_folder import RunFolder
from training.schedule import SCHEDULES
from weights import catalog

EXAMPLES = """\
  python train.py --arch RepVGGA0
  python train.py --data imagenet --arch RepVGGA0 --batch-size 256 --epochs 120 --tag paper
  python train.py --data imagenet --arch RepVGGA0 --epochs 120 --tag paper --resume auto
  python train.py --data imagenet --arch RepViTM0_9 --optimizer adamw --agc 0.02 --ema 0.9999 \\
      --warmup-epochs 5 --warmup-lr 1e-6 --min-lr 1e-5 --teacher RepVGGB3:b3.pkl
  python train.py --data imagenet --arch RepVGGA1 --recipe repvgg_paper --ngpus 8
"""

# defaults that depend on the data: on the digits, and on a folder of images
DIGITS = {"epochs": 12, "batch_size": 64, "size": 32, "crop_ratio": 1.0}
FOLDER = {"epochs": 120, "batch_size": 256, "size": 224, "crop_ratio": 0.875}
# and on the optimizer
RATES = {
    "sgd": {"lr": 0.1, "weight_decay": 1e-4},
    "adamw": {"lr": 5e-4, "weight_decay": 0.025},  # RepViT's
}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(__doc__, EXAMPLES)
    count, real = utils.number(int, 1), utils.number(float, 0)

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

    what = parser.add_argument_group("network and data")
    what.add_argument(
        "--arch",
        type=utils.arch_name,
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
        "--size", type=count, metavar="PIXELS", help="side of the input (default: 224; digits: 32)"
    )
    what.add_argument(
        "--crop-ratio",
        type=utils.number(float, 0, 1, open_low=True),
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
        "--skip-bad-images",
        action="store_true",
        help="leave corrupt images out, with a count, instead of stopping",
    )

    how = parser.add_argument_group("optimization")
    how.add_argument("--epochs", type=count, help="passes over the data (default: 120; digits: 12)")
    how.add_argument(
        "--batch-size",
        type=count,
        metavar="IMAGES",
        help="images a step, over all workers together (default: 256; digits: 64)",
    )
    how.add_argument(
        "--accumulate",
        type=count,
        default=1,
        metavar="PARTS",
        help="take a batch in so many parts and add their gradients up: less memory, the same "
        "step, but batch norms see a part at a time",
    )
    how.add_argument("--optimizer", choices=OPTIMIZERS, default="sgd", help="how weights move")
    how.add_argument(
        "--lr",
        type=utils.number(float, 0, open_low=True),
        help="learning rate for a batch of 256; scaled with the batch size (default: 0.1; "
        "adamw: 0.0005)",
    )
    how.add_argument("--momentum", type=utils.number(float, 0, 1), default=0.9, help="of SGD")
    switch = argparse.BooleanOptionalAction
    how.add_argument("--nesterov", action=switch, default=False, help="Nesterov's momentum; SGD")
    how.add_argument(
        "--weight-decay",
        type=real,
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
        type=utils.number(float, 0, 1),
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
        type=real,
        default=0.0,
        metavar="LR",
        help="where the cosine ends; not scaled with the batch size",
    )
    how.add_argument(
        "--milestones",
        type=real,
        nargs="+",
        metavar="E",
        help="epochs after which --schedule step multiplies the rate by --step-factor",
    )
    how.add_argument("--step-factor", type=real, default=0.1, metavar="F", help="at a milestone")
    how.add_argument(
        "--warmup-epochs",
        type=real,
        default=None,
        metavar="E",
        help="epochs of linear warm-up (default: 0; digits: 1)",
    )
    how.add_argument(
        "--warmup-lr",
        type=real,
        metavar="LR",
        help="where the warm-up starts; not scaled with the batch size (default: one step's rise)",
    )
    how.add_argument(
        "--clip-norm",
        type=real,
        default=0.0,
        metavar="NORM",
        help="scale the gradients down to this common L2 norm; 0: never",
    )
    how.add_argument(
        "--agc",
        type=real,
        default=0.0,
        metavar="FACTOR",
        help="adaptive clipping: each unit's gradient to FACTOR times the norm of its weights "
        "(0.01 to 0.02 is usual), but for the classifier; 0: never",
    )
    how.add_argument(
        "--ema",
        type=utils.number(float, 0, 1),
        default=0.0,
        metavar="DECAY",
        help="also average the weights over the steps (0.9999 is usual), evaluate the average, and "
        "save it as best.pkl; 0: no average",
    )
    how.add_argument(
        "--precise-bn",
        type=utils.number(int, 0),
        default=0,
        metavar="IMAGES",
        help="before an evaluation take the batch norms' statistics over so many training images "
        "(8192 is usual); 0: their running averages",
    )
    how.add_argument(
        "--seed",
        type=utils.number(int, 0, 2**31 - 1),
        default=0,
        help="of weights, order and augmentation",
    )

    add_augmentation(parser)

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
        type=utils.number(float, 0, 1),
        default=0.5,
        metavar="A",
        help="share of the teacher in the loss; the labels have the rest",
    )
    learn.add_argument(
        "--distillation-temperature",
        type=utils.number(float, 0, open_low=True),
        default=1.0,
        metavar="T",
        help="of both distributions in soft distillation",
    )

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
        type=utils.number(int, 0),
        default=500,
        metavar="STEPS",
        help="also save latest.pkl every so many steps; 0: after epochs only",
    )
    run.add_argument(
        "--print-freq", type=count, default=20, metavar="STEPS", help="steps between log lines"
    )
    run.add_argument(
        "--val-batch-size",
        type=count,
        default=100,
        metavar="IMAGES",
        help="images at once in validation",
    )
    run.add_argument(
        "--low-memory",
        action=switch,
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
        type=utils.number(int, 0),
        default=2,
        metavar="N",
        help="processes that decode and augment images; 0: none but this one",
    )

    together = parser.add_argument_group("several processes")
    together.add_argument(
        "--ngpus",
        type=count,
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
        "--world-size", type=count, default=1, metavar="HOSTS", help="hosts with --ngpus GPUs each"
    )
    together.add_argument(
        "--rank",
        type=utils.number(int, 0),
        default=0,
        metavar="HOST",
        help="number of this host, from 0",
    )
    together.add_argument(
        "--dist-addr", default="localhost", metavar="ADDRESS", help="of host 0, for the others"
    )
    together.add_argument(
        "--dist-port", type=utils.number(int, 1, 65535), default=23456, metavar="PORT", help="there"
    )
    argv = sys.argv[1:] if argv is None else argv
    args = parser.parse_args(argv)
    if args.recipe is not None:
        args = parser.parse_args(recipe.arguments(args.recipe, parser) + argv)
    if args.rank >= args.world_size:
        parser.error(f"--rank {args.rank} is not below --world-size {args.world_size}")
    defaults = (DIGITS if args.data is None else FOLDER) | RATES[args.optimizer]
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    if args.warmup_epochs is None:
        args.warmup_epochs = 1.0 if args.data is None and args.epochs > 1 else 0.0
    if args.warmup_epochs >= args.epochs:
        parser.error(
            f"--warmup-epochs {args.warmup_epochs:g} leaves nothing of --epochs {args.epochs}"
        )
    if args.freeze and not (args.pretrained or args.resume):
        parser.error("--freeze trains the classifier alone, so it needs weights by --pretrained")
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
    return args


def add_augmentation(parser: argparse.ArgumentParser) -> None:
    """The flags that `augmentation` reads."""
    part, alpha = utils.number(float, 0, 1), utils.number(float, 0)
    usual = Augmentation()
    group = parser.add_argument_group("augmentation")
    group.add_argument(
        "--crop-scale",
        type=utils.number(float, 0, 1, open_low=True),
        nargs=2,
        metavar=("LOW", "HIGH"),
        help="part of the area that the random resized crop takes (default: 0.08 1)",
    )
    group.add_argument(
        "--padding-crop",
        type=utils.number(int, 0),
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
        type=part,
        metavar="P",
        help="probability of mirroring left and right (default: 0.5; digits: 0)",
    )
    group.add_argument(
        "--color-jitter",
        type=alpha,
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
        type=part,
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
        type=utils.number(int, 1),
        default=usual.erasing_count,
        metavar="N",
        help="rectangles at most",
    )
    group.add_argument(
        "--mixup", type=alpha, default=usual.mixup, metavar="ALPHA", help="mixup's Beta; 0: off"
    )
    group.add_argument(
        "--cutmix", type=alpha, default=usual.cutmix, metavar="ALPHA", help="cutmix's Beta; 0: off"
    )
    group.add_argument(
        "--mix-prob",
        type=part,
        default=usual.mix_prob,
        metavar="P",
        help="probability that a batch is mixed",
    )
    group.add_argument(
        "--mix-switch-prob",
        type=part,
        default=usual.mix_switch_prob,
        metavar="P",
        help="probability of cutmix and not mixup where both are on",
    )
    group.add_argument(
        "--repeated-augmentation",
        type=utils.number(int, 1),
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


def show_samples(
    dataset: datasets.Dataset, preprocessing: Preprocessing, seed: int, file: Path
) -> None:
    """Write a contact sheet of one small batch as it is trained on."""
    loader = Loader(dataset, preprocessing, min(64, len(dataset)), workers=0)
    images, labels = next(loader.training(seed, epoch=0))
    if dataset.augment.mixup or dataset.augment.cutmix:
        rng = np.random.default_rng(seed)
        images, labels = mixing.mix(images, labels, len(dataset.classes), dataset.augment, rng)
    png = contact_sheet(images, labels, dataset.classes, preprocessing)
    checkpoint.write_atomically(file, lambda out: out.write(png))
    print(f"{len(images)} samples of {dataset.name}: {file}")


def open_data(data: str | None) -> tuple[datasets.Dataset, datasets.Dataset]:
    """The training set, and the validation set with the same labels."""
    if data is None:
        return datasets.digits()
    train = datasets.image_folder(data, "train")
    val = datasets.image_folder(data, "val")
    return train, datasets.with_class_order(val, len(train.classes), train.classes)


def locate_run(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """The output folder, and the checkpoint to resume from or None."""
    home = args.save / args.arch
    if args.resume == "auto":
        found = checkpoint.newest(home / args.tag if args.tag else home, "latest.pkl")
        if found is not None:
            return found.parent, found
    elif args.resume is not None:
        found = Path(args.resume)
        return home / args.tag if args.tag else found.parent, found
    folder = home / (args.tag or time.strftime("%Y-%m-%d_%H-%M-%S"))
    if (folder / "latest.pkl").exists():
        raise utils.UserError(
            f"{folder} already holds a run; go on with it by --resume auto, or name a new --tag"
        )
    return folder, None


def memory_is_short(
    args: argparse.Namespace, model: M.Module, workers: Workers, folder: RunFolder
) -> bool:
    """Whether the CPU workers, taken to be on one host, need more memory than there is."""
    if utils.gpu_count():
        return False
    images = -(-args.batch_size // (workers.size * args.accumulate))
    need = workers.size * low_memory.usual_need(model, args.size, images)
    # all decide alike, by what the first one sees
    available = workers.gather([utils.available_memory()])[0, 0]
    if need < available:
        return False
    folder.log(
        f"--low-memory is switched on: training as usual would take about {need / 2**30:.0f} GB, "
        f"and {available / 2**30:.0f} GB are free; the result is the same (--no-low-memory: "
        "leave it off)"
    )
    return True


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.show_config:
        print("\n".join(recipe.lines(args)))
        return 0
    gpu.check(args.amp, args.dtr)
    return launch.run(
        partial(train, args),
        args.ngpus,
        args.world_size,
        args.rank,
        args.dist_addr,
        args.dist_port,
    )


def train(args: argparse.Namespace, workers: Workers) -> int:
    """Train as one of `workers`; returns the exit status."""
    train_set, val_set = open_data(args.data)
    train_set = replace(train_set, augment=augmentation(args, train_set.augment))
    folder, resume_from = locate_run(args)
    num_classes = len(train_set.classes)

    mge.random.seed(args.seed)
    preprocessing, dropped = Preprocessing(), []
    if resume_from is not None:
        found = checkpoint.read(resume_from, args.arch)
        model = checkpoint.load_model(found, args.arch, num_classes, deploy=False)
    elif args.pretrained is not None:
        found = checkpoint.read(catalog.locate(args.pretrained), args.arch)
        model, dropped = checkpoint.load_for_fine_tuning(found, args.arch, num_classes)
    else:
        found = None
        model = models.create(args.arch, num_classes)
    if found is not None:
        preprocessing = found.preprocessing  # the weights expect this colour order
    preprocessing = replace(preprocessing, size=args.size, crop_ratio=args.crop_ratio)
    if args.show_samples is not None:
        if workers.rank == 0:
            show_samples(train_set, preprocessing, args.seed, args.show_samples)
        return 0
    guide = None
    if args.teacher is not None:
        guide = teacher.open_teacher(args.teacher, train_set.classes, preprocessing)
    folder = RunFolder(folder, silent=workers.rank > 0)
    lr = args.lr * args.batch_size / 256
    settings = Settings(
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr=lr,
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
        teacher=guide and guide.name,
        distillation=args.distillation,
        distillation_alpha=args.distillation_alpha,
        distillation_temperature=args.distillation_temperature,
        seed=args.seed,
        sync_bn=args.sync_bn,
        amp=args.amp,
        freeze=args.freeze,
    )
    loaders = [
        Loader(
            dataset,
            preprocessing,
            batch,
            args.workers,
            args.skip_bad_images,
            workers.rank,
            workers.size,
        )
        for dataset, batch in ((train_set, args.batch_size), (val_set, args.val_batch_size))
    ]
    if args.dtr is not None:
        gpu.enable_dtr(args.dtr)
    if args.low_memory is None:
        args.low_memory = memory_is_short(args, model, workers, folder)
    if args.low_memory:
        utils.return_freed_memory()
    trainer = Trainer(
        model,
        settings,
        *loaders,
        folder,
        args.print_freq,
        args.save_freq,
        workers,
        guide,
        args.low_memory,
    )
    if resume_from is not None:
        trainer.resume(found)
        folder.log(f"resuming {resume_from} after step {trainer.step} of {trainer.total_steps}")
    elif found is not None:
        kept = len(found.state_dict) - len(dropped)
        folder.log(
            f"starting from {args.pretrained}: {kept} tensors kept; dropped, as it has "
            f"{found.num_classes} classes: {', '.join(dropped)}"
            if dropped
            else f"starting from {args.pretrained}: all {kept} tensors kept"
        )
    folder.write_run({name: str(value) for name, value in vars(args).items()})
    folder.log(
        f"{args.arch} on {train_set.name}: {len(train_set)} training and {len(val_set)} validation "
        f"images, {num_classes} classes, {args.size} px; {args.epochs} epochs of "
        f"{trainer.steps_per_epoch} steps of {args.batch_size} images; learning rate {lr:g} "
        f"(--lr {args.lr:g} x {args.batch_size}/256)"
        + (f"; {workers.size} workers" if workers.size > 1 else "")
    )
    if args.find_lr:
        tried = find_lr.rates(100)
        losses = list(trainer.losses_at(tried * args.batch_size / 256))
        curve = find_lr.smoothed(losses)
        folder.write("find_lr.csv", find_lr.table(tried, losses, curve))
        folder.write("find_lr.png", find_lr.chart(tried, losses, curve))
        best = find_lr.suggestion(tried, curve)
        folder.log(f"the loss falls most steeply at --lr {best:.2g}: {folder.path / 'find_lr.png'}")
        return 0
    try:
        trainer.fit()
    except Interrupted as interrupted:
        folder.log(
            f"stopped by {interrupted} after step {trainer.step}; saved {folder.latest}; "
            f"go on with the same command and --resume {folder.latest}"
        )
        return 128 + interrupted.signal
    skipped = int(workers.gather([sum(len(loader.skipped) for loader in loaders)]).sum())
    if skipped:
        folder.log(f"{skipped} bad images were skipped")
    best = max(trainer.history, key=lambda row: row[trainer.judged_by])
    whose = " of the averaged weights" if args.ema else ""
    folder.log(
        f"best top-1{whose} {best[trainer.judged_by]:.2f} % in epoch {best['epoch']}: {folder.best}"
    )
    return 0


if __name__ == "__main__":
    utils.run(main)
