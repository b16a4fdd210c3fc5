"""The command line of export.py."""

from __future__ import annotations

import argparse
import re

import cli

from .boards import command

EXAMPLES = """\
  python export.py --model checkpoints/RepVGGA0/demo/best.pkl
  python export.py --model a0.pkl --opset 11 --batch 1 --input-name data --out boards/a0.onnx
  python export.py --model a0.pkl --fold-normalization --bgr-input    raw pixels, as OpenCV has them
  python export.py --model a0.pkl --format mge
  python export.py --model a0.pkl --half --size dynamic
  python export.py --model a0.pkl --features               four feature maps, for a detector
  python export.py --arch RepViTM0_9 --size 256x192                   random weights, for timing
  python export.py --model a0.pkl --kit rdk-x5 --calibration photos --out kit
  python export.py --model a0.pkl --kit ascend --data imagenet --out kit
  python export.py --model a0.pkl --kit rknn --calibration photos --data imagenet --out kit
"""
SUFFIXES = {"onnx": ".onnx", "mge": ".mge"}  # of --format
_LARGEST = 4096  # pixels of a side
_MOST_IMAGES = 1024  # of a fixed batch, which the live network computes at once for the check


def parse(description: str, argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line; end the process with a sentence for a wrong one."""
    parser = cli.ArgumentParser(description, EXAMPLES)
    what = parser.add_argument_group("network")
    cli.add_flags(what, "--arch")
    cli.add_flags(
        what,
        "--model",
        help="checkpoint in any layout that convert_pretrained_weight.py reads (default: random "
        "weights, enough to try a toolchain and to measure speed)",
    )
    cli.add_flags(what, "--entry")
    what.add_argument(
        "--keep-branches", action="store_true", help="export the train form without fusing it"
    )
    file = parser.add_argument_group("file")
    file.add_argument("--format", choices=SUFFIXES, default="onnx", help="file format: %(choices)s")
    file.add_argument(
        "--out",
        metavar="PATH",
        help="file to write, or folder for a file called ARCH.onnx or ARCH.mge (default: a file "
        "beside the checkpoint with its name and the suffix .onnx or .mge; ARCH.onnx or ARCH.mge "
        "in the working directory where --model is no file); unless --out names the file, its name "
        "has -train with --keep-branches, -features with --features and -half with --half",
    )
    cli.add_flags(
        file,
        "--size",
        type=_size,
        help="side of the input images, or HEIGHTxWIDTH, or 'dynamic' for any height and width "
        "(default: the checkpoint's)",
    )
    file.add_argument(
        "--features",
        action="store_true",
        help="write the feature maps at the network's strides, such as 4, 8, 16 and 32, as outputs "
        "stage1 to stage4, instead of the logits",
    )
    file.add_argument(
        "--half",
        action="store_true",
        help="ONNX: compute in half precision (float16), in half the size; images and outputs stay "
        "float32, and the relative error, on photographs, may be 1e-2 instead of 1e-5; classes "
        "whose logits are closer than that may change places",
    )
    file.add_argument(
        "--input-name", default="input", metavar="NAME", help="name of the input, the images"
    )
    file.add_argument(
        "--output-name", default="logits", metavar="NAME", help="name of the output, the logits"
    )
    file.add_argument(
        "--opset",
        type=cli.number(int, 11, 17),
        metavar="N",
        help="version of ONNX's operator set, from 11 to 17 (default: 17)",
    )
    file.add_argument(
        "--batch",
        type=_batch,
        metavar="N",
        help="ONNX: number of images in a batch, or 'dynamic' for any number (default: dynamic)",
    )
    file.add_argument(
        "--layout",
        choices=("nchw", "nchw88"),
        help=".mge: layout of the feature maps in memory. nchw (the default) runs on every "
        "processor and with any number of threads; nchw88, channels in blocks of 8, is 1.2 times "
        "as fast with one thread on a processor with AVX2 and no AVX-512, and does not run on AMD "
        "processors with AVX-512, where it ends or stalls the program",
    )
    images = parser.add_argument_group("input format of the file")
    images.add_argument(
        "--fold-normalization",
        action="store_true",
        help="take pixel values from 0 to 255 instead of normalized ones",
    )
    order = images.add_mutually_exclusive_group()
    for color in ("RGB", "BGR"):
        order.add_argument(
            f"--{color.lower()}-input",
            dest="input_color",
            action="store_const",
            const=color,
            help=f"take images with channels in the order {color} (default: the checkpoint's)",
        )
    cli.add_preprocessing_flags(parser)
    command.add_arguments(parser)
    cli.add_flags(parser.add_argument_group("output"), "--json")
    args = parser.parse_args(argv)
    if not (args.arch or args.model):
        parser.error("give a checkpoint by --model, or --arch alone for random weights")
    cli.refuse_without_model(parser, args)
    if args.keep_branches and (args.fold_normalization or args.input_color):
        parser.error(
            "--keep-branches leaves several convolutions on the image: it cannot go with "
            "--fold-normalization, --rgb-input or --bgr-input"
        )
    if args.features and args.output_name != parser.get_default("output_name"):
        parser.error("--output-name is for the logits; --features has outputs stage1 to stage4")
    if args.format == "mge" and args.half:
        parser.error("--half is for ONNX; leave it out with --format mge")
    if args.format == "mge" and (args.opset or args.batch):
        parser.error("--opset and --batch are for ONNX; an .mge file takes any number of images")
    if args.format == "onnx" and args.layout:
        parser.error("--layout is for --format mge; onnxruntime chooses one when it loads a file")
    if not args.input_name or not args.output_name or args.input_name == args.output_name:
        parser.error("--input-name and --output-name must be two different names")
    command.check(parser, args)
    return args


def _size(text: str) -> tuple[int, int] | str:
    if text == "dynamic":
        return text
    match = re.fullmatch(r"([1-9]\d{0,3})(?:x([1-9]\d{0,3}))?", text)
    sides = () if match is None else (int(match[1]), int(match[2] or match[1]))
    if not sides or max(sides) > _LARGEST:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither PIXELS nor HEIGHTxWIDTH of at most {_LARGEST}, nor 'dynamic'"
        )
    return sides


def _batch(text: str) -> int | str:
    if text == "dynamic":
        return "batch"
    try:
        return cli.number(int, 1, _MOST_IMAGES)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 'dynamic'") from None
