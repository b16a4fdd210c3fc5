#!/usr/bin/env python
"""Test a network: top-1 and top-5 accuracy, before and after fusion.

After quantization-aware training also as the int8 network computes, simulated in float.

Without --model it takes the newest best.pkl under checkpoints/; without --data, the handwritten
digits that come with scikit-learn.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import models
from models import environment

import megengine.module as M
from tqdm import tqdm

import cli
import utils
import weights
from data import datasets
from data.evaluation import Score, evaluate
from data.loader import Loader
from training import launch
from training.distributed import Workers
from weights import checkpoint

EXAMPLES = """\
  python test.py --switch-deploy 1
  python test.py --data imagenet --arch RepVGGA0 --model best.pkl --val-batch-size 100
  python test.py --data imagenet --model best-deploy.pkl --deploy 1
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    count = cli.number(int, 1)
    what = parser.add_argument_group("network and data")
    what.add_argument(
        "--arch",
        type=cli.arch_name,
        metavar="NAME",
        help="architecture (default: what the checkpoint says)",
    )
    what.add_argument(
        "--model",
        metavar="FILE",
        help="checkpoint (default: the newest best.pkl under checkpoints/)",
    )
    what.add_argument(
        "--data",
        metavar="DIR",
        help="folder with val/CLASS/IMAGE or test/CLASS/IMAGE; without it, the digits",
    )
    what.add_argument(
        "--deploy",
        type=int,
        choices=(0, 1),
        metavar="0|1",
        help="form that the checkpoint must be in: 0 train, 1 deploy (default: either)",
    )
    what.add_argument(
        "--switch-deploy",
        type=int,
        choices=(0, 1),
        metavar="0|1",
        default=0,
        help="1: fuse, test again, and save NAME-deploy.pkl beside the checkpoint",
    )
    how = parser.add_argument_group("evaluation")
    how.add_argument(
        "--size", type=count, metavar="PIXELS", help="side of the input (default: the checkpoint's)"
    )
    how.add_argument(
        "--crop-ratio",
        type=cli.number(float, 0, 1, open_low=True),
        metavar="R",
        help="side of the centre crop over the short side (default: the checkpoint's)",
    )
    how.add_argument(
        "--val-batch-size", type=count, default=100, metavar="IMAGES", help="images at once"
    )
    how.add_argument(
        "--workers",
        type=cli.number(int, 0),
        default=2,
        metavar="N",
        help="processes that decode images; 0: none but this one",
    )
    how.add_argument(
        "--skip-bad-images",
        action="store_true",
        help="leave corrupt images out, with a count, instead of stopping",
    )
    how.add_argument(
        "--ngpus",
        type=count,
        default=1,
        metavar="N",
        help="GPUs of this host, or CPU workers where there is none, that share the images",
    )
    output = parser.add_argument_group("output")
    output.add_argument(
        "--print-freq",
        type=count,
        default=20,
        metavar="BATCHES",
        help="batches between progress lines, where there is no terminal",
    )
    output.add_argument("--json", action="store_true", help="print JSON instead of sentences")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    return launch.run(partial(run, args), args.ngpus)


def run(args: argparse.Namespace, workers: Workers) -> int:
    """Test as one of `workers`; returns the exit status."""
    say = print if workers.rank == 0 and not args.json else lambda *_: None
    path = Path(args.model) if args.model else checkpoint.newest_best()
    if not args.model:
        say(f"testing the newest checkpoint, {path}")
    found = checkpoint.read(path, args.arch)
    if args.deploy == 1 and found.form == "train":
        raise checkpoint.CheckpointError(
            f"{path} is in train form, but --deploy 1 expects the deploy form; "
            "use --switch-deploy 1 to fuse it"
        )
    model = weights.load(found, args.arch, deploy=False if args.deploy == 0 else None)

    dataset = datasets.image_folder(args.data, "val") if args.data else datasets.digits()[1]
    dataset = datasets.with_class_order(dataset, found.num_classes, found.classes)
    changes = {"size": args.size, "crop_ratio": args.crop_ratio}
    preprocessing = replace(
        found.preprocessing, **{name: value for name, value in changes.items() if value is not None}
    )
    loader = Loader(
        dataset,
        preprocessing,
        args.val_batch_size,
        args.workers,
        args.skip_bad_images,
        workers.rank,
        workers.size,
    )

    def test(network: M.Module, form: str) -> dict:
        score = _evaluate(network, loader, form, args.print_freq, say).over_all(workers)
        say(
            f"{model.arch}, {form} form: top-1 {score.top1:.2f} % ({score.correct1} of "
            f"{score.total}), top-5 {score.top5:.2f} %"
        )
        return {"form": form, "correct1": score.correct1, "correct5": score.correct5,
                "total": score.total, "top1": score.top1, "top5": score.top5}  # fmt: skip

    result = {"arch": model.arch, "model": str(path), "results": [test(model, found.form)]}
    if found.activation_ranges is not None:
        from training import qat  # needs ONNX

        quantized = qat.FakeQuantized(model, found.activation_ranges)
        result["results"].append(test(quantized, "simulated int8"))
    if args.switch_deploy:
        deployed = models.to_deploy(model)
        result["results"].append(test(deployed, "deploy"))
        target = path.with_name(f"{path.stem.removesuffix('-deploy')}-deploy.pkl")
        if workers.rank == 0:
            contents = checkpoint.of_model(
                deployed,
                found.preprocessing,
                found.classes,
                activation_ranges=found.activation_ranges,
            )
            checkpoint.save(contents, target)
        result["saved"] = str(target)
        say(f"saved the deploy form: {target}")
    skipped = int(workers.gather([len(loader.skipped)]).sum())
    if skipped:
        result["skipped"] = skipped
        say(f"{skipped} bad images were skipped")
    if args.json and workers.rank == 0:
        print(json.dumps(result, indent=2))
    return 0


def _evaluate(model: M.Module, loader: Loader, form: str, print_freq: int, say) -> Score:
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


if __name__ == "__main__":
    environment.tune_for_training()
    utils.run(main)
