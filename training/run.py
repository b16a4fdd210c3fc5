"""A run of train.py: from its arguments to the trained network, or to what they ask for instead."""

from __future__ import annotations

import argparse

from models import cpu

from data import contact_sheet
from utils import UserError

from . import agreement, find_lr, messages, resume, run_location, start, starting_point
from .distributed import Workers
from .loop import Trainer
from .signals import Interrupted


def run(args: argparse.Namespace, workers: Workers) -> int:
    """Train as one of `workers`, by the arguments of train.py; returns the exit status.

    Raises UserError for data, weights or a folder that cannot be used.
    """
    train_set, val_set = start.open_data(args)
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
        args.low_memory = start.needs_low_memory(args, network.model, path, workers, folder)
        with cpu.using(resume.cpu_path(before, args.low_memory)):
            trainer = start.make_trainer(args, network, train_set, val_set, folder, workers)
            if resume_from is not None:
                assert network.saved is not None  # it is of this file
                best = run_location.best_of(resume_from, folder)
                trainer.resume(network.saved, has_best=best is not None)
                run_location.bring_best(best, folder)
            for line in (
                *filter(None, [unshared, messages.resumption(resume_from, trainer)]),
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
