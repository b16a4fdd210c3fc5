#!/usr/bin/env python
"""Train a re-parameterizable network.

Without --data it trains on the handwritten digits that come with scikit-learn, so that everything
can be tried at once. Results go to SAVE/ARCH/TAG: latest.pkl (to resume from), best.pkl (to test
and to deploy), metrics.csv, curves.png, log.txt, run.json and events for TensorBoard.

--size, --weight-decay, --drop-path, --auto-augment and the numbers of the augmentation may change
by epoch: 160@0,192@38 is 160 from the start and 192 after 38 epochs. Those that take fractions may
also follow half a cosine: 1e-4..1e-5 falls from 1e-4 to 1e-5.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import TYPE_CHECKING

import utils
from training import signals

if TYPE_CHECKING:
    from training.distributed import Workers
    from training.loop import Trainer


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, and train or print what they ask for; returns the exit status."""
    with signals.StopSignal():  # also while all this is imported
        from training import options, recipe

        args = options.parse(__doc__, argv)
        if args.show_config:
            print("\n".join(recipe.lines(args)))
            return 0
        # MegEngine takes a second, which --help and a wrong flag need not wait for
        from models import cpu, environment, list_models

        from training import gpu, launch

        if args.list_archs:
            print("\n".join(list_models()))
            return 0
        try:
            cpu.path()
        except ValueError as error:
            raise utils.UserError(str(error)) from None
        launch.refuse_unsupported_gpu(args.ngpus, args.world_size)
        gpu.check(args.amp, args.dtr)
        environment.tune_for_training()
        return launch.run(
            partial(train, args),
            args.ngpus,
            launch.Hosts(args.world_size, args.rank, args.dist_addr, args.dist_port),
            args.worker_timeout,
            advice="; go on from the last checkpoint with --resume auto",
        )


def train(args: argparse.Namespace, workers: Workers) -> int:
    """Train as one of `workers`; returns the exit status."""
    from models import cpu  # MegEngine, as in main

    from data import contact_sheet
    from training import agreement, folders, messages, resume, start, starting_point

    train_set, val_set = start.open_data(args)
    agreement.on_data(train_set, val_set, workers)
    seen = folders.find(args)
    resume_from, unshared = agreement.on_checkpoint(seen, workers)
    if resume_from is None and args.pretrained is None and (args.freeze or args.qat):
        raise utils.UserError(
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
    folder = folders.open_folder(args, seen, silent=workers.rank > 0, stride=stride)
    before = network.saved if resume_from is not None else None
    try:
        way = resume.way_to_compute(before, bool(args.low_memory))
        args.low_memory = start.needs_low_memory(args, network.model, way, workers, folder)
        with cpu.using(resume.way_to_compute(before, args.low_memory)):
            trainer = start.make_trainer(args, network, train_set, val_set, folder, workers)
            if resume_from is not None:
                best = folders.best_of(resume_from, folder)
                trainer.resume(network.saved, has_best=best is not None)
                folders.bring_best(best, folder)
            for line in (
                *filter(None, [unshared, messages.resumption(resume_from, trainer)]),
                *network.notes,
                messages.describe(args, trainer),
                *messages.data_warnings(train_set, val_set),
            ):
                folder.log(line)
            folder.write_run({name: str(value) for name, value in vars(args).items()})
            return fit(args, trainer)
    except utils.UserError:
        folder.remove_if_unused()
        raise


def fit(args: argparse.Namespace, trainer: Trainer) -> int:
    """Train, or try learning rates with --find-lr; returns the exit status."""
    from training import find_lr, messages

    log = trainer.run.folder.log
    try:
        if args.find_lr:
            with trainer.stop:
                log(find_lr.suggest(trainer))
            return 0
        resumed = trainer.step > 0
        trainer.fit()
    except signals.Interrupted as interrupted:
        log(messages.interruption(args, trainer, interrupted))
        return 128 + interrupted.signal
    for line in messages.summarize(trainer, resumed):
        log(line)
    return 0


if __name__ == "__main__":
    utils.run(main)
