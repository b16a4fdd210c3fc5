#!/usr/bin/env python
"""Test a network: top-1 and top-5 accuracy, before and after fusion.

The network is a checkpoint, or an .onnx or .mge file of export.py or quantize.py, which is scored
as it is. After quantization-aware training, the accuracy of the int8 network is measured too,
simulated in float. Without --model, the newest best.pkl under checkpoints/ is tested; without
--data, the images are the handwritten digits that come with scikit-learn.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import cli
import utils
from benchmarks import record

EXAMPLES = """\
  python test.py --switch-deploy 1
  python test.py --data imagenet --arch RepVGGA0 --model best.pkl --val-batch-size 100
  python test.py --data imagenet --split test --model best.pkl
  python test.py --data imagenet --model best-deploy.pkl --deploy 1
  python test.py --data imagenet --model a0-int8.onnx
  python test.py --data imagenet --model best.pkl --tta flip --labels real.json --report report
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    what = parser.add_argument_group("network and data")
    cli.add_flags(what, "--arch", "--model", "--entry")
    cli.add_flags(
        what,
        "--data",
        help="folder with val/CLASS/IMAGE, or with valid/, validation/ or test/; or an archive or "
        "another form that docs/data.md lists (default: the handwritten digits)",
    )
    cli.add_flags(what, "--val-list")
    what.add_argument(
        "--split",
        metavar="NAME",
        help="folder in --data to test on, such as train or test (default: the first that is there "
        "of val, valid, validation and test)",
    )
    what.add_argument(
        "--holdout",
        type=cli.number(float, 0, 0.9, open_low=True),
        metavar="FRACTION",
        help="test on the images that train.py --holdout FRACTION took from those of training",
    )
    what.add_argument(
        "--seed",
        type=cli.number(int, 0),
        help="seed of the run of train.py that --holdout was given to (default: 0)",
    )
    what.add_argument(
        "--deploy",
        type=int,
        choices=(0, 1),
        metavar="0|1",
        help="required form of the checkpoint: 0 for train form, 1 for deploy form "
        "(default: either form)",
    )
    what.add_argument(
        "--switch-deploy",
        type=int,
        choices=(0, 1),
        metavar="0|1",
        default=0,
        help="1: fuse the network, test it again and save NAME-deploy.pkl beside the checkpoint, "
        "or in the working directory where --model is a URL or SOURCE:NAME",
    )
    how = parser.add_argument_group("evaluation")
    cli.add_flags(
        how,
        "--size",
        "--crop-ratio",
        "--val-batch-size",
        "--workers",
        "--skip-bad-images",
        "--stall-timeout",
        "--ngpus",
    )
    how.add_argument(
        "--tta",
        choices=("flip",),
        help="test-time augmentation; flip: average the probabilities for an image and its mirror "
        "image",
    )
    how.add_argument(
        "--labels",
        metavar="FILE",
        help="JSON file with the right classes of each image, such as ImageNet-ReaL's real.json, "
        "instead of the names of the folders; images that have no class in it are not counted",
    )
    how.add_argument(
        "--only-present-classes",
        action="store_true",
        help="choose among the classes of the data instead of all that the network has, as subsets "
        "of ImageNet's classes are usually scored",
    )
    cli.add_preprocessing_flags(parser, "--crop-ratio")
    output = parser.add_argument_group("output")
    cli.add_flags(output, "--print-freq", "--json")
    output.add_argument(
        "--report",
        type=Path,
        metavar="DIR",
        help="write report.html, and the confusion matrix and a table of the classes as CSV and "
        "PNG, to this folder",
    )
    record.add_argument(output)
    args = parser.parse_args(argv)
    if args.val_list and not args.data:
        parser.error("--val-list labels the images in --data; give --data too")
    if args.split and not args.data:
        parser.error("--split names a folder in --data; give --data too")
    if args.holdout is not None and (not args.data or args.split or args.val_list):
        parser.error(
            "--holdout takes images from those of training in --data; give --data, and leave out "
            "--split and --val-list"
        )
    if args.seed is not None and args.holdout is None:
        parser.error("--seed needs --holdout, whose images it chose; give --holdout FRACTION too")
    args.seed = args.seed or 0
    if args.report is not None and args.report.exists() and not args.report.is_dir():
        parser.error(f"--report {args.report} is no folder; give another name")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    from models import environment  # MegEngine takes a second to import, which --help need not

    from benchmarks import accuracy
    from training.distributed import launch

    environment.tune_for_computing()
    return launch.run(partial(accuracy.run, args), args.ngpus)


if __name__ == "__main__":
    utils.run(main)
