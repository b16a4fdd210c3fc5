"""Scoring networks on the images that the arguments of test.py name."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from models import cpu

import megengine.module as M
from tqdm import tqdm

from data import class_order, datasets, labels, readers
from data.evaluation import Score, evaluate
from data.holdout import hold_out
from data.loader import Loader
from data.transforms import Preprocessing
from training.distributed.process_group import Workers
from utils import UserError

from .predictions import AmongClasses, Flipped, Predictions, Recorder, present_classes


class Scorer:
    """Scores the network of a file, in one form or several, as one of the workers.

    Args:
        args: arguments of test.py.
        path: file of the network, for error messages.
        workers: group of processes that share the images.
        say: prints a line, or nothing.

    Attributes:
        loader: of this worker's share of the images, once they have been opened.
        predictions: what the form that was scored first predicts; None without --report.
    """

    loader: Loader

    def __init__(
        self,
        args: argparse.Namespace,
        path: Path,
        workers: Workers,
        say: Callable[[str], object],
    ):
        self.args, self.path, self.workers, self.say = args, path, workers, say
        self.predictions: Predictions | None = None

    def open(self, given: Preprocessing, num_classes: int, classes: list[str] | None) -> None:
        """Open the images for a network with this preprocessing and these classes.

        Raises UserError for images or labels that cannot be used.
        """
        args = self.args
        if args.tta == "flip" and num_classes == 1:
            raise UserError(
                f"--tta flip averages probabilities, and the only class of {self.path} has a "
                "probability of 1 for every image; leave --tta out"
            )
        if args.holdout is not None:
            dataset = hold_out(readers.open_dataset(args.data, "train"), args.holdout, args.seed)[1]
        elif args.data:
            dataset = readers.open_dataset(
                args.data, args.split or "val", exact=bool(args.split), labels=args.val_list
            )
        else:
            dataset = datasets.digits()[1]
        if dataset.folder is not None:
            self.say(f"testing on {dataset.split} of {dataset.name}: {len(dataset)} images")
        for warning in datasets.left_out([dataset]):
            self.say(warning)
        dataset = class_order.with_class_order(dataset, num_classes, classes)
        if args.labels is not None:
            before, dataset = len(dataset), labels.with_labels(dataset, args.labels)
            self.say(
                f"labels of {args.labels}: {len(dataset)} images have some, "
                f"{before - len(dataset)} are left out"
            )
        if args.only_present_classes:
            self.say(f"choosing among {present_classes(dataset).sum()} of {num_classes} classes")
        self.loader = Loader(
            dataset,
            given,
            args.val_batch_size,
            args.workers,
            args.skip_bad_images,
            self.workers.rank,
            self.workers.size,
            args.stall_timeout,
        )

    @property
    def ways(self) -> dict[str, Any]:
        """What is unusual about how networks are scored, for the results."""
        ways = {"labels": self.args.labels, "tta": self.args.tta}
        if self.args.only_present_classes:
            count = present_classes(self.loader.dataset).sum()
            ways["among"] = f"{count} classes, which the data has"
        return {name: value for name, value in ways.items() if value is not None}

    def score(self, model: M.Module, arch: str, form: str) -> dict[str, Any]:
        """Return the score of a network over the images of all workers, and say it.

        Raises UserError for a score that means nothing.
        """
        if self.args.only_present_classes:
            model = AmongClasses(model, present_classes(self.loader.dataset))
        if self.args.tta == "flip":
            model = Flipped(model)
        recorder = None
        if self.args.report is not None and self.predictions is None:
            recorder = model = Recorder(model)
        score = self._evaluate(model, form).over_all(self.workers)
        self._check(score, form)
        if recorder is not None:
            self.predictions = recorder.predictions(self.loader, self.workers)
        self.say(
            f"{arch}, {form} form: top-1 {score.top1:.2f} % ({score.correct1} of "
            f"{score.total}), top-5 {score.top5:.2f} %"
        )
        return {"form": form, "correct1": score.correct1, "correct5": score.correct5,
                "total": score.total, "top1": score.top1, "top5": score.top5}  # fmt: skip

    def _check(self, score: Score, form: str) -> None:
        """Raise UserError for a score that means nothing."""
        if score.total == 0:
            raise UserError(
                "none of the images could be read; leave --skip-bad-images out, and the first of "
                "them is named"
            )
        if score.not_finite:
            raise UserError(
                f"{self.path} in {form} form computes infinities or NaN for {score.not_finite} of "
                f"{score.total} images; use other weights"
            )

    def _evaluate(self, model: M.Module, form: str) -> Score:
        """Return the score over this worker's images, with a progress bar or progress lines."""
        batches = 0
        total = len(self.loader.dataset) // self.loader.world
        with tqdm(total=total, desc=form, unit="image", leave=False, disable=None) as bar:

            def show(score: Score) -> None:
                nonlocal batches
                batches += 1
                bar.update(score.total - bar.n)
                bar.set_postfix({"top-1": f"{score.top1:.2f} %"})
                if bar.disable and batches % self.args.print_freq == 0:
                    self.say(f"{form} form, {score.total} images: top-1 {score.top1:.2f} %")

            with cpu.evaluation():
                return evaluate(model, self.loader.evaluation(), show)
