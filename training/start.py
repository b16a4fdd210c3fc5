"""The start of a run: its data, its folder, its weights and its trainer, from parsed arguments."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import models
from models import environment

import megengine as mge
import megengine.module as M
import numpy as np

import utils
import weights
from data import by_epoch, datasets, mixing, readers
from data.contact_sheet import contact_sheet
from data.holdout import hold_out
from data.loader import Loader
from data.transforms import TORCHVISION, Preprocessing
from weights import catalog, checkpoint, preprocessing
from weights.channels import with_input_channels

from . import constant_norms, gpu, low_memory, memory, options, signals
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
        train = readers.open_dataset(args.data, "train")
        if args.holdout is not None:
            train, val = hold_out(train, args.holdout, args.seed)
        elif train.whole and args.val_list is None:
            raise utils.UserError(
                f"nothing in {args.data} says which images are for validation; give --holdout 0.1 "
                "to take a tenth of all, or data with the parts train and val"
            )
        else:
            val = readers.open_dataset(args.data, "val", labels=args.val_list)
            val = datasets.with_class_order(val, len(train.classes), train.classes)
    return replace(train, augment=options.augmentation(args, train.augment)), val


class StartingPoint:
    """The network with which a run starts, and where its weights are from.

    Attributes:
        model: in train form.
        preprocessing: of the images, in the colour order that the weights expect.
        saved: the checkpoint that the weights are from, or None for random weights.
        notes: lines about where the weights and the preprocessing are from.
    """

    def __init__(self, args: argparse.Namespace, num_classes: int, resume_from: Path | None):
        """Raises UserError when a checkpoint cannot be read or does not fit."""
        mge.random.seed(args.seed)
        stated = preprocessing.of_flags(args)
        stated["size"] = (by_epoch.values(args.size)[-1], "this run's")
        stated["crop_ratio"] = (args.crop_ratio, "this run's")
        self.saved: checkpoint.Checkpoint | None = None
        self.notes: list[str] = []
        if resume_from is not None:
            # as it was recorded, for resume.check to compare with what the flags say
            self.saved = checkpoint.read(resume_from, args.arch, stride=args.stride)
            self.model = weights.load(self.saved, args.arch, num_classes, deploy=False)
            _check_channels(args.in_chans, self.model, resume_from)
        elif args.pretrained is not None:
            path = catalog.locate(args.pretrained)
            self.saved = checkpoint.read(
                path, args.arch, entry=args.entry, stride=args.stride, stated=stated
            )
            converted = None
            if args.in_chans is not None:
                self.saved, converted = with_input_channels(self.saved, args.in_chans)
            self.model, dropped = weights.load_for_fine_tuning(self.saved, args.arch, num_classes)
            kept = self._kept(args.pretrained, dropped)
            if converted:
                kept += f"; for images of {converted}"
            self.notes = [kept, *self._preprocessing()]
        else:
            self.model = models.create(
                args.arch, num_classes, in_chans=args.in_chans or 3, stride=args.stride or 32
            )
        if self.saved is not None and resume_from is None:
            self.preprocessing = self.saved.preprocessing
            return
        habit, origin, path = TORCHVISION, "the default", "the new network"
        if self.saved is not None:
            habit, origin, path = self.saved.preprocessing, "the run", str(resume_from)
        self.preprocessing, _, _ = preprocessing.resolve(
            preprocessing.of_habit(habit, origin),
            stated,
            classes=num_classes,
            channels=self.model.in_chans,
            path=path,
        )

    def _preprocessing(self) -> list[str]:
        saved = self.saved
        return preprocessing.lines(saved.preprocessing, saved.classes, saved.origins)

    def _kept(self, source: str, dropped: list[str]) -> str:
        kept = len(self.saved.state_dict) - len(dropped)
        if self.saved.num_classes == 0:
            return (
                f"starting from {source}: all {kept} tensors kept; it is a backbone, so the "
                "classifier starts from random weights"
            )
        if not dropped:
            return f"starting from {source}: all {kept} tensors kept"
        return (
            f"starting from {source}: {kept} tensors kept; dropped, as it has "
            f"{self.saved.num_classes} classes: {', '.join(dropped)}"
        )


def _check_channels(in_chans: int | None, model: M.Module, path: Path) -> None:
    """Raise UserError when a run to resume has another number of channels than --in-chans."""
    if in_chans not in (None, model.in_chans):
        raise utils.UserError(
            f"the run to resume, {path}, takes images of {model.in_chans} channels; leave out "
            f"--in-chans {in_chans}, or start a new run with another --tag"
        )


def show_samples(
    dataset: datasets.Dataset, preprocessing: Preprocessing, seed: int, file: Path
) -> None:
    """Write a contact sheet of one small batch as it is trained on."""
    loader = Loader(dataset, preprocessing, min(64, len(dataset)), workers=0)
    images, labels = next(loader.training(seed, epoch=0))
    augment = loader.augmentation(epoch=0)
    if augment.mixup or augment.cutmix:
        rng = np.random.default_rng(seed)
        images, labels = mixing.mix(images, labels, len(dataset.classes), augment, rng)
    png = contact_sheet(images, labels, dataset.classes, preprocessing)
    utils.write_atomically(file, lambda out: out.write(png))
    print(f"{len(images)} samples of {dataset.name}: {file}")


def make_trainer(
    args: argparse.Namespace,
    start: StartingPoint,
    train_set: datasets.Dataset,
    val_set: datasets.Dataset,
    folder: RunFolder,
    workers: Workers,
) -> Trainer:
    """Return the trainer that the flags ask for, at its first step."""
    guide, quantized = None, None
    _check_classes(args, start.saved, train_set.classes, folder)
    if args.teacher is not None:
        guide = open_teacher(args.teacher, train_set.classes, start.preprocessing)
    loaders = [
        Loader(
            dataset,
            start.preprocessing,
            batch,
            args.workers,
            args.skip_bad_images,
            workers.rank,
            workers.size,
            args.stall_timeout,
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
    run = Run(
        folder, workers, args.print_freq, args.save_freq, args.low_memory, args.extend, args.keep
    )
    trainer = Trainer(Network(start.model, quantized, guide), Data(*loaders), settings, run)
    constant = constant_norms.warn(
        start.model, settings, min(by_epoch.values(args.size)), workers.size
    )
    if constant is not None:
        folder.log(constant)
    return trainer


def _check_classes(
    args: argparse.Namespace,
    saved: checkpoint.Checkpoint | None,
    classes: list[str],
    folder: RunFolder,
) -> None:
    """Warn where a classifier is kept whose classes are others than the data's.

    Raises UserError instead where --class-names says what the classes of the weights are.
    """
    if saved is None or saved.num_classes != len(classes) or saved.classes in (None, classes):
        return
    first, other = next(
        pair for pair in zip(saved.classes, classes, strict=True) if pair[0] != pair[1]
    )
    if args.class_names is not None:
        raise utils.UserError(
            f"--class-names has {first!r} where the data has the class {other!r}; give the folders "
            "of the data the names, and thereby the order, that the weights have"
        )
    if args.resume is None:  # else resume.check refuses it
        folder.log(
            f"warning: the weights have the class {first!r} where the data has {other!r}; their "
            "classifier is kept all the same"
        )


def _memory_is_short(
    args: argparse.Namespace, model: M.Module, workers: Workers, folder: RunFolder
) -> bool:
    """Return whether the CPU workers of some host need more memory than is free on it."""
    if environment.gpu_count():
        return False
    images = -(-args.batch_size // (workers.size * args.accumulate))
    shared_norms = args.sync_bn and workers.size > 1
    operator_by_operator = args.freeze or shared_norms or any(by_epoch.values(args.drop_path))
    need = workers.local_size * low_memory.usual_need(
        model, max(by_epoch.values(args.size)), images, compiled=not operator_by_operator
    )
    # all decide alike, by the host that is shortest of memory
    needed, free = workers.gather([need, memory.available_memory()]).T
    worst = int((free - needed).argmin())
    need, available = needed[worst], free[worst]
    if need < available:
        return False
    folder.log(
        f"--low-memory is switched on: training as usual may take {need / 2**30:.1f} GB, "
        f"and {available / 2**30:.1f} GB are free; the result differs by rounding alone "
        "(--no-low-memory: leave it off)"
    )
    return True


def resumption(path: Path | None, trainer: Trainer) -> str | None:
    """Return the line that a run goes on from a checkpoint, if there is one."""
    if path is None:
        return None
    return f"resuming {path} after step {trainer.step} of {trainer.total_steps}"


def warnings(train: datasets.Dataset, val: datasets.Dataset) -> list[str]:
    """Return what is to be said about the data before training."""
    return [*datasets.left_out([train, val]), *datasets.single_class(train)]


def describe(args: argparse.Namespace, trainer: Trainer) -> str:
    """Return a line that sums up a run."""
    train, val = trainer.data.train.dataset, trainer.data.val.dataset
    source = f" ({val.split})" if val.split not in ("", "val/") else ""
    name = models.variant_name(args.arch, trainer.network.model.options)
    line = (
        f"{name} on {train.name}: {len(train)} training and {len(val)} validation images"
        f"{source}, "
        f"{len(train.classes)} classes, {args.size} px; {args.epochs} epochs of "
        f"{trainer.steps_per_epoch} steps of {args.batch_size} images; "
        f"learning rate {trainer.settings.lr:g} (--lr {args.lr:g} x {args.batch_size}/256)"
    )
    return line + (f"; {trainer.workers.size} workers" if trainer.workers.size > 1 else "")


def interruption(
    args: argparse.Namespace, trainer: Trainer, interrupted: signals.Interrupted
) -> str:
    """Return the last line of a run that a signal has stopped."""
    line = f"stopped by {interrupted} after step {trainer.step}; "
    if args.find_lr:
        return line + "the range test saves nothing"
    latest = trainer.run.folder.latest
    return line + f"saved {latest}; go on with the same command and --resume {latest}"


def summarize(trainer: Trainer) -> list[str]:
    """Return the last lines of a finished run: bad images, and the best accuracy.

    All workers must call it.
    """
    lines = []
    skipped = sum(len(loader.skipped) for loader in (trainer.data.train, trainer.data.val))
    skipped = int(trainer.workers.gather([skipped]).sum())
    if skipped:
        lines.append(f"{skipped} bad images were skipped")
    best, latest = trainer.best.row(trainer.history), trainer.run.folder.latest
    if best is None:
        return [*lines, f"no epoch was left to train; the network of the last one: {latest}"]
    whose = " of the averaged weights" if trainer.settings.ema else ""
    top1, file = best[trainer.best.column], trainer.run.folder.best
    return [*lines, f"best top-1{whose} {top1:.2f} % in epoch {best['epoch']}: {file}"]
