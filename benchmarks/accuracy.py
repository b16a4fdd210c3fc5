"""Accuracy of a checkpoint, in each form that it can take, or of an exported file."""

from __future__ import annotations

import argparse
import os
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import models
from models import equivalence

import megengine as mge
import megengine.module as M
import numpy as np

import weights
from data.loader import Loader
from deployment import fusion_check, network, network_file
from deployment.verification import Runner
from training.distributed.process_group import Workers
from utils import UserError, assert_writable, json_text
from weights import catalog, checkpoint, newest, stated_preprocessing

from . import html_report, record
from .predictions import Predictions
from .scoring import Scorer


def run(args: argparse.Namespace, workers: Workers) -> int:
    """Test a network as one of `workers`, by the arguments of test.py; returns the exit status.

    Raises UserError for a model file or images that cannot be used.
    """
    say = print if workers.rank == 0 and not args.json else lambda _: None
    if args.report is not None:  # now, as a test may take hours
        html_report.make_folder(args.report)
    path = catalog.locate(args.model) if args.model else newest.best()
    if not args.model:
        say(f"testing the newest checkpoint, {path}")
    scorer = Scorer(args, path, workers, say)
    test = _test_exported if network_file.is_exported(path) else _test_checkpoint
    result = test(scorer, stated_preprocessing.of_flags(args, args.size))
    loader = scorer.loader
    if loader.dataset.folder is not None:
        result["split"] = loader.dataset.split.rstrip("/")
    skipped = int(workers.gather([len(loader.skipped)]).sum())
    if skipped:
        result["skipped"] = skipped
        say(f"{skipped} bad images were skipped")
    if workers.rank == 0:
        if args.record:  # before what is printed, which may have no reader by now
            about = {key: value for key, value in result.items() if key != "results"}
            record.write(args.record, result["results"], about)
        try:
            if args.report is not None:
                report = _report(args.report, path, result, loader, scorer.predictions)
                result["report"] = str(report)
                say(f"report: {report}")
        finally:
            if args.json:
                print(json_text(result))
    return 0


def _target(args: argparse.Namespace, path: Path) -> Path:
    """Return the file of the deploy form; raise UserError where it cannot be written."""
    beside = path if not args.model or os.path.exists(args.model) else Path(path.name)
    target = beside.with_name(f"{beside.stem.removesuffix('-deploy')}-deploy.pkl")
    if target.exists() and target.samefile(path):
        raise UserError(
            f"{path} has the name by which --switch-deploy saves the deploy form; leave that out, "
            "or rename the file"
        )
    assert_writable(target, "copy the checkpoint to another folder, or leave --switch-deploy out")
    return target


def _assert_equal(path: Path, model: M.Module, size: int) -> None:
    """Raise UserError unless fusion leaves the function of a network as it is."""
    check = fusion_check.compare(model, equivalence.random_images(model, size))
    if not check.holds:
        raise UserError(f"the deploy form was not saved: {fusion_check.refusal(path, check)}")


def _report(
    folder: Path, path: Path, result: dict[str, Any], loader: Loader, predictions: Predictions
) -> Path:
    """Write the report of a test to `folder`; returns its path."""
    dataset, first, given = loader.dataset, result["results"][0], loader.preprocessing
    facts = {
        "network": f"{result['arch']}, {first['form']} form",
        "file": str(path),
        "images": f"{' '.join(filter(None, (dataset.name, dataset.split)))}: {first['total']}",
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


def _test_exported(scorer: Scorer, stated: stated_preprocessing.Statements) -> dict[str, Any]:
    """Return the results of an .onnx or .mge file."""
    args, path = scorer.args, scorer.path
    if args.switch_deploy or args.deploy == 0:
        raise UserError(
            f"{path} is an exported network, not a checkpoint that can be in train form or be "
            "fused; leave out --switch-deploy and --deploy"
        )
    net = network.load(path, args.arch, args.entry, stated)
    for line in stated_preprocessing.lines(net.preprocessing, net.class_ids, net.origins):
        scorer.say(line)
    height, width = net.size
    if height != width:
        raise UserError(
            f"{path} takes images of {height} x {width}, and accuracy is measured on squares; "
            "export the network again with --size and one number, or dynamic"
        )
    given = replace(net.preprocessing, size=height)
    scorer.open(given, net.num_classes, net.class_ids)
    return {
        "arch": net.arch,
        "model": str(path),
        "preprocessing": asdict(given),
        "origins": net.origins,
        **scorer.ways,
        "results": [scorer.score(_Running(_logits_of(net)), net.arch, net.form)],
    }


def _logits_of(net: network.Network) -> Runner:
    """Return what computes logits: of a file that gives probabilities, their logarithms."""
    if not net.gives_probabilities:
        return net.run
    return lambda images: np.log(np.maximum(net.run(images), np.float32(1e-30)))


class _Running(M.Module):
    """A network in a file as a Module: images [N, C, H, W] -> logits [N, classes]."""

    def __init__(self, run: Runner):
        super().__init__()
        self.run = run

    def forward(self, images: mge.Tensor) -> mge.Tensor:
        return mge.Tensor(self.run(images.numpy()))


def _test_checkpoint(scorer: Scorer, stated: stated_preprocessing.Statements) -> dict[str, Any]:
    """Return the results of a checkpoint, in each form that the arguments ask for."""
    args, path = scorer.args, scorer.path
    contents = checkpoint.read(path, args.arch, entry=args.entry, stated=stated)
    for line in stated_preprocessing.lines(
        contents.preprocessing, contents.classes, contents.origins
    ):
        scorer.say(line)
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
    given = contents.preprocessing
    target = _target(args, path) if args.switch_deploy else None
    if target is not None and scorer.workers.rank == 0:  # before the test, which may take hours
        _assert_equal(path, model, given.size)
    scorer.open(given, contents.num_classes, contents.classes)
    result = {
        "arch": model.arch,
        "model": str(path),
        "preprocessing": asdict(given),
        "origins": contents.origins,
        **scorer.ways,
        "results": [scorer.score(model, model.arch, contents.form)],
    }
    if contents.activation_ranges is not None:
        from training import qat  # needs ONNX

        quantized = qat.FakeQuantized(model, contents.activation_ranges)
        result["results"].append(scorer.score(quantized, model.arch, "simulated int8"))
    if target is not None:
        deployed = models.to_deploy(model)
        result["results"].append(scorer.score(deployed, model.arch, "deploy"))
        if scorer.workers.rank == 0:
            deploy_form = checkpoint.of_model(
                deployed,
                contents.preprocessing,
                contents.classes,
                activation_ranges=contents.activation_ranges,
            )
            checkpoint.save(deploy_form, target)
        result["saved"] = str(target)
        scorer.say(f"saved the deploy form: {target}")
    return result
