#!/usr/bin/env python
"""Train a re-parameterizable network.

Without --data it trains on the handwritten digits that come with scikit-learn, so that everything
can be tried at once. Results go to SAVE/ARCH/TAG: latest.pkl (to resume from), best.pkl (to test
and to deploy), metrics.csv, curves.png, log.txt, run.json and events for TensorBoard.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from functools import partial
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
from training import find_lr, gpu, launch, low_memory, memory, options, recipe, teacher
from training.distributed import Workers
from training.groups import Data, Network, Run
from training.loop import Trainer
from training.run_folder import RunFolder
from training.signals import Interrupted
from weights import catalog, checkpoint


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


def main(argv: list[str] | None = None) -> int:
    args = options.parse(__doc__, argv)
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
    train_set = replace(train_set, augment=options.augmentation(args, train_set.augment))
    folder, resume_from = locate_run(args)
    num_classes = len(train_set.classes)

    mge.random.seed(args.seed)
    preprocessing, dropped = Preprocessing(), []
    if resume_from is not None:
        found = checkpoint.read(resume_from, args.arch)
        model = weights.load(found, args.arch, num_classes, deploy=False)
    elif args.pretrained is not None:
        found = checkpoint.read(catalog.locate(args.pretrained), args.arch)
        model, dropped = weights.load_for_fine_tuning(found, args.arch, num_classes)
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
    settings = options.settings(args, guide and guide.name)
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
        args.low_memory = not args.qat and memory_is_short(args, model, workers, folder)
    if args.low_memory:
        environment.return_freed_memory()
    quantized = None
    if args.qat:
        from training import qat  # needs ONNX

        quantized = qat.FakeQuantized(model)
    run = Run(folder, workers, args.print_freq, args.save_freq, args.low_memory)
    trainer = Trainer(Network(model, quantized, guide), Data(*loaders), settings, run)
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
        f"{trainer.steps_per_epoch} steps of {args.batch_size} images; "
        f"learning rate {settings.lr:g} (--lr {args.lr:g} x {args.batch_size}/256)"
        + (f"; {workers.size} workers" if workers.size > 1 else "")
    )
    if args.find_lr:
        folder.log(find_lr.suggest(trainer))
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
    environment.tune_for_training()
    utils.run(main)
