"""Accuracy of a checkpoint on labelled images, in each form that it can take."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import models

import megengine.module as M
from tqdm import tqdm

import weights
from data import datasets
from data.evaluation import Score, evaluate
from data.loader import Loader
from training.distributed import Workers
from weights import catalog, checkpoint, preprocessing

from . import record

Say = Callable[[str], object]  # prints a line, or nothing


def run(args: argparse.Namespace, workers: Workers) -> int:
    """Test a network as one of `workers`, by the arguments of test.py; returns the exit status.

    Raises UserError for a checkpoint or images that cannot be used.
    """
    say = print if workers.rank == 0 and not args.json else lambda _: None
    path = catalog.locate(args.model) if args.model else checkpoint.newest_best()
    if not args.model:
        say(f"testing the newest checkpoint, {path}")
    stated = preprocessing.of_flags(args)
    contents = checkpoint.read(path, args.arch, entry=args.entry, stated=stated)
    for line in preprocessing.lines(contents.preprocessing, contents.classes, contents.origins):
        say(line)
    if args.deploy == 1 and contents.form == "train":
        raise checkpoint.CheckpointError(
            f"{path} is in train form, but --deploy 1 expects the deploy form; "
            "use --switch-deploy 1 to fuse it"
        )
    if args.deploy == 0 and contents.form == "deploy":
        raise checkpoint.CheckpointError(
            f"{path} is in deploy form, but --deploy 0 expects the train form; use --deploy 1, or "
            "give the train-form file it was fused from"
        )
    model = weights.load(contents, args.arch)
    loader = _loader(args, contents, workers)

    def test(network: M.Module, form: str) -> dict[str, Any]:
        score = _evaluate(network, loader, form, args.print_freq, say).over_all(workers)
        say(
            f"{model.arch}, {form} form: top-1 {score.top1:.2f} % ({score.correct1} of "
            f"{score.total}), top-5 {score.top5:.2f} %"
        )
        return {"form": form, "correct1": score.correct1, "correct5": score.correct5,
                "total": score.total, "top1": score.top1, "top5": score.top5}  # fmt: skip

    result = {
        "arch": model.arch,
        "model": str(path),
        "preprocessing": asdict(loader.preprocessing),
        "origins": contents.origins,
        "results": [test(model, contents.form)],
    }
    if contents.activation_ranges is not None:
        from training import qat  # needs ONNX

        quantized = qat.FakeQuantized(model, contents.activation_ranges)
        result["results"].append(test(quantized, "simulated int8"))
    if args.switch_deploy:
        deployed = models.to_deploy(model)
        result["results"].append(test(deployed, "deploy"))
        beside = path if not args.model or os.path.exists(args.model) else Path(model.arch)
        target = beside.with_name(f"{beside.stem.removesuffix('-deploy')}-deploy.pkl")
        if workers.rank == 0:
            deploy_form = checkpoint.of_model(
                deployed,
                contents.preprocessing,
                contents.classes,
                activation_ranges=contents.activation_ranges,
            )
            checkpoint.save(deploy_form, target)
        result["saved"] = str(target)
        say(f"saved the deploy form: {target}")
    skipped = int(workers.gather([len(loader.skipped)]).sum())
    if skipped:
        result["skipped"] = skipped
        say(f"{skipped} bad images were skipped")
    if workers.rank == 0:
        if args.json:
            print(json.dumps(result, indent=2))
        if args.record:
            record.write(args.record, result.pop("results"), result)
    return 0


def _loader(args: argparse.Namespace, contents: checkpoint.Checkpoint, workers: Workers) -> Loader:
    """Return a loader of this worker's share of the test images."""
    dataset = datasets.image_folder(args.data, "val") if args.data else datasets.digits()[1]
    dataset = datasets.with_class_order(dataset, contents.num_classes, contents.classes)
    size = args.size or contents.preprocessing.size
    return Loader(
        dataset,
        replace(contents.preprocessing, size=size),
        args.val_batch_size,
        args.workers,
        args.skip_bad_images,
        workers.rank,
        workers.size,
    )


def _evaluate(model: M.Module, loader: Loader, form: str, print_freq: int, say: Say) -> Score:
    """Return the score over the loader's images, with a progress bar or progress lines."""
    batches = 0
    total = len(loader.dataset) // loader.world
    with tqdm(total=total, desc=form, unit="image", leave=False, disable=None) as bar:

        def show(score: Score) -> None:
            nonlocal batches
            batches += 1
            bar.update(score.total - bar.n)
            bar.set_postfix({"top-1": f"{score.top1:.2f} %"})
            if bar.disable and batches % print_freq == 0:
                say(f"{form} form, {score.total} images: top-1 {score.top1:.2f} %")

        return evaluate(model, loader.evaluation(), show)
