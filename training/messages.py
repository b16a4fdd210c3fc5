"""The lines that a run logs when it begins and when it ends."""

from __future__ import annotations

import argparse
from pathlib import Path

import models

import numpy as np

from data import datasets

from . import signals
from .distributed.process_group import Workers
from .loop import Trainer


def resumption(path: Path | None, trainer: Trainer) -> str | None:
    """Return the line that a run goes on from a checkpoint, if there is one."""
    if path is None:
        return None
    return f"resuming {path} after step {trainer.step} of {trainer.total_steps}"


def data_warnings(train: datasets.Dataset, val: datasets.Dataset) -> list[str]:
    """Return the warnings about the data that come before training."""
    lines = [*datasets.left_out([train, val]), *datasets.single_class(train)]
    counts = np.bincount(val.labels, minlength=len(train.classes))
    absent = [name for name, count in zip(train.classes, counts, strict=True) if not count]
    if absent:
        lines.append(
            f"warning: no validation image is of {len(absent)} of the {len(counts)} classes: "
            f"{', '.join(absent[:3])}{' ...' if len(absent) > 3 else ''}"
        )
    return lines


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


def _count(indices: set[int], workers: Workers) -> int:
    """Return how many different indices all workers have together."""
    most = int(workers.gather([len(indices)]).max())
    rows = workers.gather([*indices, *[-1] * (most - len(indices))])
    return len(np.setdiff1d(rows, -1))


def summarize(trainer: Trainer, resumed: bool) -> list[str]:
    """Return the last lines of a finished run: bad images, and the best accuracy.

    All workers must call it.
    """
    lines = []
    loaders = trainer.data.train, trainer.data.val
    skipped = sum(_count(loader.skipped, trainer.workers) for loader in loaders)
    if skipped:
        since = " since the run was resumed" if resumed else ""
        lines.append(f"{skipped} bad images were skipped{since}")
    best, latest = trainer.best.row(trainer.history), trainer.run.folder.latest
    if best is None:
        return [*lines, f"no epoch was left to train; the last epoch's weights are in {latest}"]
    whose = " of the averaged weights" if trainer.settings.ema else ""
    top1, file = best[trainer.best.column], trainer.run.folder.best
    return [*lines, f"best top-1{whose} {top1:.2f} % in epoch {best['epoch']}: {file}"]
