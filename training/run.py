"""A run of train.py: from its arguments to the trained network, or to what they ask for instead."""

from __future__ import annotations

import argparse

from models import cpu, environment

from data import by_epoch, contact_sheet
from data.datasets import Dataset
from data.loader import Loader
from utils import UserError
from weights.checkpoint import Checkpoint

from . import (
    agreement,
    constant_norms,
    find_lr,
    gpu,
    low_memory,
    messages,
    mixed_precision,
    options,
    resume,
    run_data,
    run_location,
    starting_point,
)
from .distributed.process_group import Workers
from .loop import Trainer
from .run_folder import RunFolder
from .signals import Interrupted
from .teacher import open_teacher
from .trainer_inputs import Data, Network, Run


def run(args: argparse.Namespace, workers: Workers) -> int:
    """Train as one of `workers`, by the arguments of train.py; returns the exit status.

    Raises UserError for data, weights or a folder that cannot be used.
    """
    train_set, val_set = run_data.of_flags(args)
    agreement.on_data(train_set, val_set, workers)
    seen = run_location.find(args)
    resume_from, unshared = agreement.on_checkpoint(seen, workers)
    if resume_from is None and args.pretrained is None and (args.freeze or args.qat):
        raise UserError(
            f"--resume {args.resume} has found no run, and {'--qat' if args.qat else '--freeze'} "
            "needs a trained network; give its weights by --pretrained"
        )
    network = starting_point.of_flags(args, len(train_set.classes), resume_from)
    if args.show_samples is not None:
        if workers.rank == 0:
            shown = train_set, network.preprocessing, args.seed, args.show_samples
            print(contact_sheet.write_samples(*shown, args.skip_bad_images))
        return 0
    stride = network.model.options.get("stride")
    folder = run_location.open_folder(args, seen, silent=workers.rank > 0, stride=stride)
    before = network.saved if resume_from is not None else None
    try:
        path = resume.cpu_path(before, bool(args.low_memory))
        args.low_memory = low_memory.is_needed(args, network.model, path, workers, folder)
        with cpu.using(resume.cpu_path(before, args.low_memory)):
            if resume_from is None:  # else resume.check refuses other classes
                _check_classes(args, network.saved, train_set.classes, folder)
            trainer = make_trainer(args, network, train_set, val_set, folder, workers)
            if resume_from is not None:
                assert network.saved is not None  # it is of this file
                best = run_location.best_of(resume_from, folder)
                trainer.resume(network.saved, has_best=best is not None)
                run_location.bring_best(best, folder)
            for line in (
                *filter(None, [unshared, messages.resumption(resume_from, trainer)]),
                *filter(None, [_precision_note(args, trainer)]),
                *network.notes,
                messages.describe(args, trainer),
                *messages.data_warnings(train_set, val_set),
            ):
                folder.log(line)
            folder.write_run({name: str(value) for name, value in vars(args).items()})
            return _fit(args, trainer)
    except UserError:
        folder.remove_if_unused()
        raise


def _precision_note(args: argparse.Namespace, trainer: Trainer) -> str | None:
    size, drop_path = (by_epoch.values(value) for value in (args.size, args.drop_path))
    return mixed_precision.note(args.amp, trainer.network.model, max(size), drop_path)


def _fit(args: argparse.Namespace, trainer: Trainer) -> int:
    """Train, or try learning rates with --find-lr; returns the exit status."""
    log = trainer.run.folder.log
    try:
        if args.find_lr:
            with trainer.stop:
                log(find_lr.suggest(trainer))
            return 0
        resumed = trainer.step > 0
        trainer.fit()
    except Interrupted as interrupted:
        log(messages.interruption(args, trainer, interrupted))
        return 128 + interrupted.signal
    for line in messages.summarize(trainer, resumed):
        log(line)
    return 0


def make_trainer(
    args: argparse.Namespace,
    start: starting_point.StartingPoint,
    train_set: Dataset,
    val_set: Dataset,
    folder: RunFolder,
    workers: Workers,
) -> Trainer:
    """Return the trainer that the flags ask for, at its first step; --low-memory is decided."""
    guide, quantized = None, None
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
        raise UserError(
            f"--class-names has {first!r} where the data has the class {other!r}; give the folders "
            "of the data the names, and thereby the order, that the weights have"
        )
    folder.log(
        f"warning: the weights have the class {first!r} where the data has {other!r}; their "
        "classifier is kept all the same"
    )
