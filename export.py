#!/usr/bin/env python
"""Export a network as an ONNX or .mge file, and check the file by running it.

The network is fused first. onnxruntime or MegEngine's own runtime runs the file, whose logits must
equal the live network's (relative error at most 1e-5) with the same best classes; otherwise no file
is written.

With --fold-normalization, the file takes raw pixels, float32 from 0 to 255. 1/std is folded into
the first convolution. The mean is subtracted by one addition before it, not folded into its bias,
because a normalized image is padded with zeros, which correspond to the mean in raw pixels: this
way the borders are exact too.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import cli
import utils

if TYPE_CHECKING:  # MegEngine takes a second to import, which --help need not
    import megengine.module as M

    from data.transforms import Preprocessing

EXAMPLES = """\
  python export.py --model checkpoints/RepVGGA0/demo/best.pkl
  python export.py --model a0.pkl --opset 11 --batch 1 --input-name data --out boards/a0.onnx
  python export.py --model a0.pkl --fold-normalization --bgr-input    raw pixels, as OpenCV has them
  python export.py --model a0.pkl --format mge
  python export.py --arch RepViTM0_9 --size 256x192                   random weights, for timing
  python export.py --model a0.pkl --kit rdk-x5 --calibration photos --out kit
  python export.py --model a0.pkl --kit ascend --data imagenet --out kit
"""
SUFFIX = {"onnx": ".onnx", "mge": ".mge"}
# board -> its own options; the first one is required
KITS = {"rdk-x5": ("calibration", "images"), "ascend": ("data", "labels")}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    what = parser.add_argument_group("network")
    cli.add_flags(what, "--arch")
    cli.add_flags(
        what,
        "--model",
        help="checkpoint in any layout that convert_pretrained_weight.py reads (default: random "
        "weights, enough to try a toolchain and to measure speed)",
    )
    what.add_argument(
        "--keep-branches", action="store_true", help="export the train form without fusing it"
    )
    file = parser.add_argument_group("file")
    file.add_argument("--format", choices=SUFFIX, default="onnx", help="file format: %(choices)s")
    file.add_argument(
        "--out",
        metavar="PATH",
        help="file to write, or folder to write it in (default: the checkpoint's name with the "
        "suffix .onnx or .mge, beside it; without a checkpoint, ARCH.onnx or ARCH.mge)",
    )
    cli.add_flags(
        file,
        "--size",
        type=_size,
        help="side of the input images, or HEIGHTxWIDTH (default: the checkpoint's)",
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
            dest="color",
            action="store_const",
            const=color,
            help=f"take images with channels in the order {color} (default: the checkpoint's)",
        )
    kit = parser.add_argument_group(
        "kit for a board: a new folder, named by --out, with the files that the board's tools need"
    )
    kit.add_argument(
        "--kit", choices=KITS, metavar="BOARD", help=f"board to write a kit for: {', '.join(KITS)}"
    )
    cli.add_flags(kit, "--calibration", help="rdk-x5: folder of images to calibrate on")
    cli.add_flags(
        kit,
        "--images",
        help="rdk-x5: number of calibration images, taken evenly from the sorted files "
        "(default: 100)",
    )
    cli.add_flags(
        kit,
        "--data",
        help="ascend: folder with val/CLASS/IMAGE or test/CLASS/IMAGE; with --labels, a folder "
        "of images",
    )
    kit.add_argument(
        "--labels",
        metavar="FILE",
        help="ascend: text file with one image's file name and class number in each line",
    )
    cli.add_flags(parser.add_argument_group("output"), "--json")
    args = parser.parse_args(argv)
    if not (args.arch or args.model):
        parser.error("give a checkpoint by --model, or --arch alone for random weights")
    if args.keep_branches and (args.fold_normalization or args.color):
        parser.error(
            "--keep-branches leaves several convolutions on the image: it cannot go with "
            "--fold-normalization, --rgb-input or --bgr-input"
        )
    if args.format == "mge" and (args.opset or args.batch):
        parser.error("--opset and --batch are for ONNX; an .mge file takes any number of images")
    if args.format == "onnx" and args.layout:
        parser.error("--layout is for --format mge; onnxruntime chooses one when it loads a file")
    if not args.input_name or not args.output_name or args.input_name == args.output_name:
        parser.error("--input-name and --output-name must be two different names")
    _check_kit(parser, args)
    return args


def _check_kit(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error for options that a kit lacks, or that do not belong to it."""
    for board, options in KITS.items():
        for option in options:
            if getattr(args, option) and args.kit != board:
                parser.error(f"--{option} is for --kit {board}")
    if args.kit is None:
        return
    for option in (KITS[args.kit][0], "out"):
        if not getattr(args, option):
            parser.error(f"--kit {args.kit} needs --{option}, a folder")
    decided = ("keep_branches", "format", "input_name", "output_name", "opset", "batch",
               "fold_normalization", "color")  # fmt: skip
    for option in decided:
        if getattr(args, option) != parser.get_default(option):
            flag = "rgb-input or --bgr-input" if option == "color" else option.replace("_", "-")
            parser.error(f"the board decides about --{flag}; leave it out with --kit")
    if args.size and args.size[0] != args.size[1]:
        parser.error("a kit is for square images; give --size one number")


def _size(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([1-9]\d{0,4})(?:x([1-9]\d{0,4}))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is neither PIXELS nor HEIGHTxWIDTH")
    return int(match[1]), int(match[2] or match[1])


def _batch(text: str) -> int | str:
    if text == "dynamic":
        return "batch"
    try:
        return cli.number(int, 1)(text)
    except argparse.ArgumentTypeError as error:
        raise argparse.ArgumentTypeError(f"{error}, nor 'dynamic'") from None


def target_path(args: argparse.Namespace, name: str) -> Path:
    """Return the file to write, called `name` unless the arguments or the checkpoint name it."""
    suffix = SUFFIX[args.format]
    if args.out is None:
        beside = Path(args.model) if args.model and os.path.isfile(args.model) else Path(name)
        return beside.with_suffix(suffix)
    path = Path(args.out)
    if path.is_dir() or not path.suffix:
        return path / f"{name}{suffix}"
    if path.suffix != suffix:
        raise utils.UserError(
            f"--out {path} does not end in {suffix}; give another name or --format"
        )
    return path


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    import models
    from models import environment

    from deployment import input_format, source
    from weights import files

    environment.return_freed_memory()
    model, preprocessing, metadata = source.load(args.model, args.arch, args.keep_branches)
    file_input = preprocessing
    if args.color:
        file_input = input_format.in_color_order(file_input, args.color)
    if args.fold_normalization:
        file_input = input_format.raw_pixels(file_input)
    size = args.size or (preprocessing.size, preprocessing.size)
    if args.kit:
        return write_kit(args, model, replace(preprocessing, size=size[0]), metadata)
    target = target_path(args, models.variant_name(model.arch, model.options))
    common = {
        "file_input": file_input,
        "size": size,
        "input_name": args.input_name,
        "output_name": args.output_name,
        "metadata": metadata,
    }
    if args.format == "onnx":
        from deployment.onnx_export import export_onnx

        details = {"opset": args.opset or 17, "batch": args.batch or "batch"}
        exported = export_onnx(model, target, preprocessing, **common, **details)
    else:
        from deployment.mge_export import export_mge

        details = {"layout": args.layout or "nchw"}
        exported = export_mge(model, target, preprocessing, **common, **details)
    report = {
        **metadata,
        "format": args.format,
        "takes": input_format.describe(file_input, size),
        "input": [args.input_name, [details.get("batch", "batch"), 3, *size]],
        "output": [args.output_name, [details.get("batch", "batch"), model.num_classes]],
        **details,
        "network_parameters": models.profile(model, 32).parameters,
        **exported._asdict(),
        "file": str(target),
        "bytes": target.stat().st_size,
        "sha256": files.sha256(target),
    }
    print(json.dumps(report, indent=2) if args.json else _text(report))
    return 0


def write_kit(
    args: argparse.Namespace, model: M.Module, preprocessing: Preprocessing, metadata: dict
) -> int:
    """Write a kit and print the names of its files; returns the exit status."""
    if args.kit == "rdk-x5":
        from deployment.boards import rdk

        count = args.images or 100
        listed = rdk.write_kit(model, preprocessing, args.calibration, args.out, count, metadata)
    else:
        from deployment.boards import ascend

        classes = metadata["classes"]
        images = ascend.labelled_images(args.data, args.labels, model.num_classes, classes)
        listed = ascend.write_kit(model, preprocessing, *images, args.out, metadata)
    if args.json:
        print(
            json.dumps({**metadata, "kit": args.kit, "folder": args.out, "files": listed}, indent=2)
        )
    else:
        print(f"{args.kit} kit of {model.arch} in {args.out}: {', '.join(listed)}")
        print(f"instructions: {Path(args.out, 'README.txt')}")
    return 0


def _text(report: dict) -> str:
    images = report["takes"]
    raw = set(images["std"]) == {1.0} and not any(images["mean"])
    options = "".join(f", {name}={value}" for name, value in report["options"].items())
    (input_name, input_shape), (output_name, output_shape) = report["input"], report["output"]
    numbers = f"{report['network_parameters']:,}"
    if report["format"] == "onnx":
        numbers = (
            f"{report['parameters']:,} in {report['initializers']} initializers; "
            f"the network's: {numbers}"
        )
        made_of = ", ".join(f"{count} {kind}" for kind, count in report["operators"].items())
        lines = [("operators", f"{made_of} (opset {report['opset']})")]
        runtime = "onnxruntime"
    else:
        lines = [("layout", report["layout"])]
        runtime = "MegEngine's runtime"
    lines = [
        ("source", report["source"]),
        (
            "architecture",
            f"{report['arch']}{options}, {report['form']} form, {report['num_classes']} classes",
        ),
        ("input", f"{input_name} {_shape(input_shape)}, {images['color']}, "
                  f"{'pixels of 0 to 255' if raw else 'normalized'}"),
        ("output", f"{output_name} {_shape(output_shape)}"),
        ("parameters", numbers),
        *lines,
        ("verified", f"relative error {report['relative_error']:.1e} under {runtime}"),
        ("file", f"{report['file']}, {report['bytes'] / 1e6:.1f} MB"),
        ("sha256", report["sha256"]),
    ]  # fmt: skip
    if "source_sha256" not in report:
        lines.append(("note", "these weights are random; give --model for trained ones"))
    return "\n".join(f"{label + ':':14}{value}" for label, value in lines)


def _shape(dimensions: list) -> str:
    return f"[{', '.join(map(str, dimensions))}]"


if __name__ == "__main__":
    utils.run(main)
