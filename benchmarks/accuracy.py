"""Accuracy of a checkpoint, in each form that it can take, or of an exported file."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import models

import megengine as mge
import megengine.module as M
from tqdm import tqdm

import weights
from data import datasets, labels, readers
from data.evaluation import Score, evaluate
from data.loader import Loader
from data.transforms import Preprocessing
from deployment import network
from deployment.verification import Runner
from training.distributed import Workers
from utils import UserError
from weights import catalog, checkpoint, preprocessing

from . import html_report, record
from .predictions import AmongClasses, Flipped, Predictions, Recorder, present_classes

Say = Callable[[str], object]  # prints a line, or nothing


def run(args: argparse.Namespace, workers: Workers) -> int:
    """Test a network as one of `workers`, by the arguments of test.py; returns the exit status.

    Raises UserError for a model file or images that cannot be used.
    """
    say = print if workers.rank == 0 and not args.json else lambda _: None
    path = catalog.locate(args.model) if args.model else checkpoint.newest_best()
    if not args.model:
        say(f"testing the newest checkpoint, {path}")
    stated = preprocessing.of_flags(args)
    test = _test_exported if network.is_exported(path) else _test_checkpoint
    seen: list[Predictions] = []
    result, loader = test(args, path, stated, workers, say, seen)
    if loader.dataset.folder is not None:
        result["split"] = loader.dataset.split.rstrip("/")
    skipped = int(workers.gather([len(loader.skipped)]).sum())
    if skipped:
        result["skipped"] = skipped
        say(f"{skipped} bad images were skipped")
    if workers.rank == 0:
        if args.report is not None:
            report = _report(args.report, path, result, loader, seen[0])
            result["report"] = str(report)
            say(f"report: {report}")
        if args.json:
            print(json.dumps(result, indent=2))
        if args.record:
            record.write(args.record, result.pop("results"), result)
    return 0


def _report(
    folder: Path, path: Path, result: dict[str, Any], loader: Loader, predictions: Predictions
) -> Path:
    """Write the report of a test to `folder`; returns its path."""
    dataset, first, given = loader.dataset, result["results"][0], loader.preprocessing
    facts = {
        "network": f"{result['arch']}, {first['form']} form",
        "file": str(path),
        "images": f"{dataset.name}{' ' * bool(dataset.split)}{dataset.split}: {first['total']}",
        "input": f"{given.size} px, {given.color}, {given.interpolation}, "
        f"crop ratio {given.crop_ratio:g}",
        **{key: str(result[key]) for key in ("labels", "tta", "among", "skipped") if key in result},
        "date": date.today().isoformat(),
        "versions": ", ".join(f"{name} {version}" for name, version in record.versions().items()),
    }
    title = f"{result['arch']} on {dataset.name}: top-1 {first['top1']:.2f} %"
    run = path.parent if (path.parent / "run.json").exists() else None
    return html_report.write(
        folder, title, facts, result["results"], dataset, predictions, given, run
    )


def _check(score: Score, path: Path, form: str) -> None:
    """Raise UserError for a score that means nothing."""
    if score.total == 0:
        raise UserError(
            "none of the images could be read; leave --skip-bad-images away, and the first of them "
            "is named"
        )
    if score.not_finite:
        raise UserError(
            f"{path} in {form} form computes infinities or NaN for {score.not_finite} of "
            f"{score.total} images; use other weights"
        )


def _test_exported(
    args: argparse.Namespace,
    path: Path,
    stated: preprocessing.Statements,
    workers: Workers,
    say: Say,
    seen: list[Predictions],
) -> tuple[dict[str, Any], Loader]:
    """Return the results of an .onnx or .mge file, and the loader that it was tested with."""
    if args.switch_deploy or args.deploy == 0:
        raise UserError(
            f"{path} is an exported network, not a checkpoint that can be in train form or be "
            "fused; leave out --switch-deploy and --deploy"
        )
    if args.size is not None:
        stated = {**stated, "size": (args.size, "--size")}
    net = network.load(path, args.arch, args.entry, stated)
    for line in preprocessing.lines(net.preprocessing, net.class_ids, net.origins):
        say(line)
    height, width = net.size
    if height != width:
        raise UserError(
            f"{path} takes images of {height} x {width}, and accuracy is measured on squares; "
            "export the network again with --size and one number, or dynamic"
        )
    given = replace(net.preprocessing, size=height)
    loader = _loader(args, given, net.num_classes, net.class_ids, workers, say)
    running = _Running(net.run)
    row = _test(running, path, net.arch, net.form, loader, args, workers, say, seen)
    return {
        "arch": net.arch,
        "model": str(path),
        "preprocessing": asdict(given),
        "origins": net.origins,
        **_ways(args, loader),
        "results": [row],
    }, loader


class _Running(M.Module):
    """A network in a file as a Module: images [N, C, H, W] -> logits [N, classes]."""

    def __init__(self, run: Runner):
        super().__init__()
        self.run = run

    def forward(self, images: mge.Tensor) -> mge.Tensor:
        return mge.Tensor(self.run(images.numpy()))


def _test_checkpoint(
    args: argparse.Namespace,
    path: Path,
    stated: preprocessing.Statements,
    workers: Workers,
    say: Say,
    seen: list[Predictions],
) -> tuple[dict[str, Any], Loader]:
    """Return the results of a checkpoint, and the loader that it was tested with."""
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
    given = replace(contents.preprocessing, size=args.size or contents.preprocessing.size)
    loader = _loader(args, given, contents.num_classes, contents.classes, workers, say)

    def test(network: M.Module, form: str) -> dict[str, Any]:
        return _test(network, path, model.arch, form, loader, args, workers, say, seen)

    result = {
        "arch": model.arch,
        "model": str(path),
        "preprocessing": asdict(loader.preprocessing),
        "origins": contents.origins,
        **_ways(args, loader),
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
    return result, loader


def _loader(
    args: argparse.Namespace,
    given: Preprocessing,
    num_classes: int,
    classes: list[str] | None,
    workers: Workers,
    say: Say,
) -> Loader:
    """Return a loader of this worker's share of the test images; say which these are."""
    if args.data:
        dataset = readers.open_dataset(
            args.data, args.split or "val", exact=bool(args.split), labels=args.val_list
        )
    else:
        dataset = datasets.digits()[1]
    if dataset.folder is not None:
        say(f"testing on {dataset.split} of {dataset.name}: {len(dataset)} images")
    for warning in datasets.left_out([dataset]):
        say(warning)
    dataset = datasets.with_class_order(dataset, num_classes, classes)
    if args.labels is not None:
        before, dataset = len(dataset), labels.with_labels(dataset, args.labels)
        say(
            f"labels of {args.labels}: {len(dataset)} images have some, {before - len(dataset)} "
            "are left out"
        )
    if args.only_present_classes:
        say(f"choosing among {present_classes(dataset).sum()} of {num_classes} classes")
    return Loader(
        dataset,
        given,
        args.val_batch_size,
        args.workers,
        args.skip_bad_images,
        workers.rank,
        workers.size,
    )


def _ways(args: argparse.Namespace, loader: Loader) -> dict[str, Any]:
    """Return what is unusual about how a network is tested, for the results."""
    ways = {"labels": args.labels, "tta": args.tta}
    if args.only_present_classes:
        ways["among"] = f"{present_classes(loader.dataset).sum()} classes, which the data has"
    return {name: value for name, value in ways.items() if value is not None}


def _test(
    model: M.Module,
    path: Path,
    arch: str,
    form: str,
    loader: Loader,
    args: argparse.Namespace,
    workers: Workers,
    say: Say,
    seen: list[Predictions],
) -> dict[str, Any]:
    """Return the score of a network over the images of all workers, and say it.

    With --report, what it predicts for the images is added to `seen`.
    """
    if args.only_present_classes:
        model = AmongClasses(model, present_classes(loader.dataset))
    if args.tta == "flip":
        model = Flipped(model)
    recorder = Recorder(model) if args.report is not None else None
    score = _evaluate(recorder or model, loader, form, args.print_freq, say).over_all(workers)
    _check(score, path, form)
    if recorder is not None:
        seen.append(recorder.predictions(loader, workers))
    say(
        f"{arch}, {form} form: top-1 {score.top1:.2f} % ({score.correct1} of "
        f"{score.total}), top-5 {score.top5:.2f} %"
    )
    return {"form": form, "correct1": score.correct1, "correct5": score.correct5,
            "total": score.total, "top1": score.top1, "top5": score.top5}  # fmt: skip


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
