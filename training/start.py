"""The start of a run: its data, its need of memory and its trainer, from parsed arguments."""

from __future__ import annotations

import argparse
from dataclasses import replace

from models import cpu, environment

import megengine.module as M

import utils
from data import by_epoch, class_order, datasets, readers
from data.holdout import hold_out
from data.loader import Loader
from weights.checkpoint import Checkpoint

from . import constant_norms, gpu, low_memory, memory, options
from .distributed import Workers
from .loop import Trainer
from .run_folder import RunFolder
from .starting_point import StartingPoint
from .teacher import open_teacher
from .trainer_inputs import Data, Network, Run


def open_data(args: argparse.Namespace) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return the training set, augmented as the flags say, and the validation set.

    Both have the same labels. Raises UserError when there is no such data.
    """
    if args.data is None:
        train, val = datasets.digits()
    else:
        train = class_order.in_imagenets_order(readers.open_dataset(args.data, "train"))
        if args.holdout is not None:
            train, val = hold_out(train, args.holdout, args.seed)
        elif train.whole and args.val_list is None:
            raise utils.UserError(
                f"nothing in {args.data} says which images are for validation; give --holdout 0.1 "
                "to take a tenth of all, or data with the parts train and val"
            )
        else:
            val = readers.open_dataset(args.data, "val", labels=args.val_list)
            if train.whole and val.whole:
                raise utils.UserError(
                    f"all images of {args.data} would be both for training and for validation; "
                    "give --holdout 0.1 instead of --val-list, or data with the parts train and val"
                )
            _check_known(val, train)
            val = class_order.with_class_order(val, len(train.classes), train.classes)
    return replace(train, augment=options.augmentation(args, train.augment)), val


def _check_known(val: datasets.Dataset, train: datasets.Dataset) -> None:
    """Raise UserError when validation images are of a class that no training image is of."""
    if val.numbered or class_order.are_imagenets_labels(val, len(train.classes), train.classes):
        return
    known = class_order.positions(val.classes, train.classes)
    unknown = sorted({*val.classes} - known.keys())
    if unknown:
        raise utils.UserError(
            f"the validation images of {val.name} have the class {unknown[0]!r}, which the "
            "training images lack; add training images of it, or remove or rename its folder"
        )


def needs_low_memory(
    args: argparse.Namespace, model: M.Module, cpu_path: str, workers: Workers, folder: RunFolder
) -> bool:
    """Return what --low-memory says, or without it whether memory is short; log the latter.

    `cpu_path` is how a CPU computes where memory is not short, see models.cpu.
    """
    # a frozen trunk keeps no activations
    if args.low_memory is not None or args.qat or args.freeze:
        return bool(args.low_memory)
    with cpu.using(cpu_path):
        return _memory_is_short(args, model, workers, folder)


def make_trainer(
    args: argparse.Namespace,
    start: StartingPoint,
    train_set: datasets.Dataset,
    val_set: datasets.Dataset,
    folder: RunFolder,
    workers: Workers,
) -> Trainer:
    """Return the trainer that the flags ask for, at its first step; --low-memory is decided."""
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
    if args.low_memory:
        environment.return_freed_memory()
    if args.qat:
        from . import qat  # needs ONNX

        quantized = qat.FakeQuantized(start.model)
    settings = options.settings(args, None if guide is None else guide.name)
    run = Run(
        folder, workers, args.print_freq, args.save_freq, args.low_memory, args.extend, args.keep
    )
    trainer = Trainer(Network(start.model, quantized, guide), Data(*loaders), settings, run)
    constant = constant_norms.warning(
        start.model, settings, min(by_epoch.values(args.size)), workers.size
    )
    if constant is not None:
        folder.log(constant)
    return trainer


def _check_classes(
    args: argparse.Namespace,
    saved: Checkpoint | None,
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
    share = -(-args.batch_size // workers.size)
    images = -(-share // args.accumulate)
    shared_norms = args.sync_bn and workers.size > 1
    operator_by_operator = shared_norms or any(by_epoch.values(args.drop_path))
    if not operator_by_operator and share % args.accumulate:
        images += images - 1  # a program for each of the two sizes that the parts have
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
