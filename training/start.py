"""The start of a run: its data, its folder, its weights and its trainer, from parsed arguments."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import models
from models import environment

import megengine as mge
import megengine.module as M
import numpy as np

import utils
import weights
from data import datasets, mixing
from data.contact_sheet import contact_sheet
from data.loader import Loader
from data.transforms import Preprocessing
from weights import catalog, checkpoint

from . import gpu, low_memory, memory, options
from .distributed import Workers
from .groups import Data, Network, Run
from .loop import Trainer
from .run_folder import RunFolder
from .teacher import open_teacher


def open_data(args: argparse.Namespace) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return the training set, augmented as the flags say, and the validation set.

    Both have the same labels. Raises UserError when there is no such data.
    """
    if args.data is None:
        train, val = datasets.digits()
    else:
        train = datasets.image_folder(args.data, "train")
        val = datasets.image_folder(args.data, "val")
        val = datasets.with_class_order(val, len(train.classes), train.classes)
    return replace(train, augment=options.augmentation(args, train.augment)), val


def locate(args: argparse.Namespace) -> tuple[Path, Path | None]:
    """Return the output folder, and the checkpoint to resume from or None.

    Raises UserError where a new run would overwrite another.
    """
    options = {"stride": args.stride} if args.stride not in (None, 32) else {}
    home = args.save / models.variant_name(args.arch, options)
    if args.resume == "auto":
        latest = checkpoint.newest(home / args.tag if args.tag else home, "latest.pkl")
        if latest is not None:
            return latest.parent, latest
    elif args.resume is not None:
        latest = Path(args.resume)
        return home / args.tag if args.tag else latest.parent, latest
    folder = home / (args.tag or time.strftime("%Y-%m-%d_%H-%M-%S"))
    if (folder / "latest.pkl").exists():
        raise utils.UserError(
            f"{folder} already holds a run; go on with it by --resume auto, or name a new --tag"
        )
    return folder, None


class StartingPoint:
    """The network with which a run starts, and where its weights are from.

    Attributes:
        model: in train form.
        preprocessing: of the images, in the colour order that the weights expect.
        saved: the checkpoint that the weights are from, or None for random weights.
        note: a line about where the weights are from, or None.
    """

    def __init__(self, args: argparse.Namespace, num_classes: int, resume_from: Path | None):
        """Raises UserError when a checkpoint cannot be read or does not fit."""
        mge.random.seed(args.seed)
        self.saved: checkpoint.Checkpoint | None = None
        self.note: str | None = None
        if resume_from is not None:
            self.saved = checkpoint.read(resume_from, args.arch, stride=args.stride)
            self.model = weights.load(self.saved, args.arch, num_classes, deploy=False)
        elif args.pretrained is not None:
            file = catalog.locate(args.pretrained)
            self.saved = checkpoint.read(file, args.arch, stride=args.stride)
            self.model, dropped = weights.load_for_fine_tuning(self.saved, args.arch, num_classes)
            self.note = self._kept(args.pretrained, dropped)
        else:
            self.model = models.create(args.arch, num_classes, stride=args.stride or 32)
        preprocessing = Preprocessing() if self.saved is None else self.saved.preprocessing
        self.preprocessing = replace(preprocessing, size=args.size, crop_ratio=args.crop_ratio)

    def _kept(self, source: str, dropped: list[str]) -> str:
        kept = len(self.saved.state_dict) - len(dropped)
        if not dropped:
            return f"starting from {source}: all {kept} tensors kept"
        return (
            f"starting from {source}: {kept} tensors kept; dropped, as it has "
            f"{self.saved.num_classes} classes: {', '.join(dropped)}"
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
    utils.write_atomically(file, lambda out: out.write(png))
    print(f"{len(images)} samples of {dataset.name}: {file}")


def make_trainer(
    args: argparse.Namespace,
    start: StartingPoint,
    train_set: datasets.Dataset,
    val_set: datasets.Dataset,
    folder: Path,
    workers: Workers,
) -> Trainer:
    """Return the trainer that the flags ask for, at its first step; makes the output folder."""
    guide, quantized = None, None
    if args.teacher is not None:
        guide = open_teacher(args.teacher, train_set.classes, start.preprocessing)
    folder = RunFolder(folder, silent=workers.rank > 0)
    loaders = [
        Loader(
            dataset,
            start.preprocessing,
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
        args.low_memory = not args.qat and _memory_is_short(args, start.model, workers, folder)
    if args.low_memory:
        environment.return_freed_memory()
    if args.qat:
        from . import qat  # needs ONNX

        quantized = qat.FakeQuantized(start.model)
    settings = options.settings(args, guide and guide.name)
    run = Run(folder, workers, args.print_freq, args.save_freq, args.low_memory)
    return Trainer(Network(start.model, quantized, guide), Data(*loaders), settings, run)


def _memory_is_short(
    args: argparse.Namespace, model: M.Module, workers: Workers, folder: RunFolder
) -> bool:
    """Return whether the CPU workers, taken to be on one host, need more memory than is free."""
    if environment.gpu_count():
        return False
    images = -(-args.batch_size // (workers.size * args.accumulate))
    need = workers.size * low_memory.usual_need(model, args.size, images)
    # all decide alike, by what the first one sees
    available = workers.gather([memory.available_memory()])[0, 0]
    if need < available:
        return False
    folder.log(
        f"--low-memory is switched on: training as usual would take about {need / 2**30:.0f} GB, "
        f"and {available / 2**30:.0f} GB are free; the result is the same (--no-low-memory: "
        "leave it off)"
    )
    return True


def describe(args: argparse.Namespace, trainer: Trainer) -> str:
    """Return a line that sums up a run."""
    train, val = trainer.data.train.dataset, trainer.data.val.dataset
    name = models.variant_name(args.arch, trainer.network.model.options)
    line = (
        f"{name} on {train.name}: {len(train)} training and {len(val)} validation images, "
        f"{len(train.classes)} classes, {args.size} px; {args.epochs} epochs of "
        f"{trainer.steps_per_epoch} steps of {args.batch_size} images; "
        f"learning rate {trainer.settings.lr:g} (--lr {args.lr:g} x {args.batch_size}/256)"
    )
    return line + (f"; {trainer.workers.size} workers" if trainer.workers.size > 1 else "")


def summarize(trainer: Trainer) -> list[str]:
    """Return the last lines of a finished run: bad images, and the best accuracy.

    All workers must call it.
    """
    lines = []
    skipped = sum(len(loader.skipped) for loader in (trainer.data.train, trainer.data.val))
    skipped = int(trainer.workers.gather([skipped]).sum())
    if skipped:
        lines.append(f"{skipped} bad images were skipped")
    best = max(trainer.history, key=lambda row: row[trainer.judged_by])
    whose = " of the averaged weights" if trainer.settings.ema else ""
    top1, file = best[trainer.judged_by], trainer.run.folder.best
    return [*lines, f"best top-1{whose} {top1:.2f} % in epoch {best['epoch']}: {file}"]
