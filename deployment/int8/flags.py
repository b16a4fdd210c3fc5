"""The command line of quantize.py."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import cli

from .dialects import DIALECTS
from .ranges import CLIPS

EXAMPLES = """\
  python quantize.py --model a0.pkl --calibration imagenet/train
  python quantize.py --model a0.pkl --calibration imagenet/train --data imagenet --out a0-int8.onnx
  python quantize.py --model a0.pkl --calibration imagenet/train --full-range     for VNNI
  python quantize.py --model a0.pkl --calibration imagenet/train --target tensorrt
  python quantize.py --model a0.pkl --calibration imagenet/train --data imagenet --max-drop 0.3
  python quantize.py --model checkpoints/RepVGGA0-qa/int8/best.pkl      after train.py --qat
  python quantize.py --model RepVGGA0.onnx --calibration photos --images 32 --weights per-tensor
"""


def parse(
    description: str,
    argv: list[str] | None,
    add_more: Callable[[argparse.ArgumentParser], None],
) -> argparse.Namespace:
    """Parse the command line of quantize.py; `add_more` adds flags of others to the parser."""
    parser = cli.ArgumentParser(description, EXAMPLES)
    cli.add_flags(parser, "--arch")
    cli.add_flags(
        parser,
        "--model",
        required=True,
        help="checkpoint in any layout that convert_pretrained_weight.py reads, or an .onnx file "
        "that export.py wrote",
    )
    cli.add_flags(parser, "--entry", "--size")
    cli.add_flags(
        parser,
        "--calibration",
        help="folder or archive of images to calibrate on; optional for a network trained by "
        "train.py --qat",
    )
    cli.add_flags(
        parser,
        "--images",
        help="number of calibration images, taken evenly from the sorted files (default: 64)",
    )
    cli.add_flags(
        parser,
        "--data",
        help="data to measure the accuracy on: a folder with val/CLASS/IMAGE or test/CLASS/IMAGE, "
        "or another form that docs/data.md lists",
    )
    cli.add_flags(parser, "--val-list")
    cli.add_preprocessing_flags(parser)
    parser.add_argument(
        "--target",
        choices=tuple(DIALECTS),
        default="onnxruntime",
        help="runtime that the file is for: %(choices)s; the file for openvino is onnxruntime's",
    )
    floors = parser.add_mutually_exclusive_group()
    floors.add_argument(
        "--max-drop",
        type=cli.number(float, 0),
        metavar="POINTS",
        help="largest loss of top-1 accuracy on --data, in percentage points; as few layers as "
        "possible are kept in float to stay within it",
    )
    floors.add_argument(
        "--min-sqnr",
        type=cli.number(float, -100),
        metavar="DB",
        help="least SQNR of the int8 network's logits on the calibration images, in dB; as few "
        "layers as possible are kept in float to reach it; no labels are needed",
    )
    parser.add_argument(
        "--weights",
        choices=("per-channel", "per-tensor"),
        default="per-channel",
        help="granularity of the weights' scales in the file; the report compares both",
    )
    parser.add_argument(
        "--full-range",
        action="store_true",
        help="use all of int8's range for the weights, which is more exact but saturates on CPUs "
        "without VNNI instructions unless onnxruntime's session.x64quantprecision is set",
    )
    parser.add_argument(
        "--clip",
        choices=("auto", *CLIPS),
        default="auto",
        help="method that chooses the activations' ranges: %(choices)s; auto takes the one with "
        "the least noise in the logits of the calibration images, measured without --full-range "
        "even if that is given",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write (default: NAME-int8.onnx beside the model file, or in the working "
        "directory where that is a folder, a URL or SOURCE:NAME; NAME-int8-TARGET.onnx with "
        "--target tensorrt or rknn)",
    )
    cli.add_flags(parser, "--json")
    add_more(parser)
    args = parser.parse_args(argv)
    per_tensor = args.weights == "per-tensor"
    for_calibration = per_tensor or args.full_range or args.clip != "auto" or args.images
    if args.calibration is None and for_calibration:
        parser.error(
            "--weights per-tensor, --full-range, --clip and --images are for a --calibration"
        )
    if args.val_list and not args.data:
        parser.error("--val-list needs --data, the images that it labels")
    if per_tensor and args.full_range:
        parser.error("--full-range is for --weights per-channel")
    if args.full_range and not DIALECTS[args.target].saturates:
        parser.error(
            f"--full-range is for runtimes on CPUs; a file for {args.target} has the full range"
        )
    if args.calibration is None and (args.max_drop, args.min_sqnr) != (None, None):
        parser.error("--max-drop and --min-sqnr need --calibration, a folder of images")
    if args.max_drop is not None and args.data is None:
        parser.error("--max-drop needs --data with labels; without labels, use --min-sqnr")
    return args
