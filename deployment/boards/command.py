"""The part of export.py's command line that writes kits for boards."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cli
from utils import UserError

if TYPE_CHECKING:  # MegEngine takes a second to import, which --help need not
    import megengine.module as M

    from data.transforms import Preprocessing

# board -> its own options; the first one is required
KITS = {
    "rdk-x5": ("calibration", "images", "int16"),
    "rdk-x3": ("calibration", "images"),
    "ascend": ("data", "labels"),
    "rknn": ("calibration", "images", "data", "labels"),
}
# options of export.py about which the board decides
_DECIDED = ("keep_branches", "format", "input_name", "output_name", "opset", "batch", "features",
            "half", "fold_normalization", "input_color")  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add --kit and the boards' options."""
    kit = parser.add_argument_group(
        "kit for a board: a new folder, named by --out, with the files that the board's tools need"
    )
    kit.add_argument(
        "--kit", choices=KITS, metavar="BOARD", help=f"board to write a kit for: {', '.join(KITS)}"
    )
    cli.add_flags(
        kit,
        "--calibration",
        help="rdk-x5, rdk-x3, rknn: folder or archive of images for calibration",
    )
    cli.add_flags(
        kit,
        "--images",
        help="rdk-x5, rdk-x3, rknn: number of calibration images, taken evenly from the sorted "
        "files (default: 100; rknn: 50)",
    )
    kit.add_argument(
        "--int16",
        type=cli.COUNT,
        metavar="N",
        help="rdk-x5: number of operators to compute in int16, those that lose most accuracy in "
        "int8, measured on the calibration images (default: those that D-Robotics' zoo names)",
    )
    cli.add_flags(
        kit,
        "--data",
        help="ascend, rknn: folder or archive with val/CLASS/IMAGE or test/CLASS/IMAGE; with "
        "--labels, a folder of images. For rknn it is optional, and 1,000 of the images are for "
        "the simulator",
    )
    kit.add_argument(
        "--labels",
        metavar="FILE",
        help="ascend, rknn: text file with one image's file name and class number in each line",
    )


def check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Exit with an error for options that a kit lacks, or that do not belong to it."""
    for option in dict.fromkeys(option for options in KITS.values() for option in options):
        boards = [board for board, options in KITS.items() if option in options]
        if getattr(args, option) and args.kit not in boards:
            parser.error(f"--{option} is for --kit {' or '.join(boards)}")
    if args.kit is None:
        return
    for option in (KITS[args.kit][0], "out"):
        if not getattr(args, option):
            parser.error(f"--kit {args.kit} needs --{option}, a folder")
    if args.labels and not args.data:
        parser.error("--labels needs --data, the folder of the images that it names")
    for option in _DECIDED:
        if getattr(args, option) != parser.get_default(option):
            flag = option.replace("_", "-")
            if option == "input_color":
                flag = "rgb-input or --bgr-input"
            parser.error(f"the board decides about --{flag}; leave it out with --kit")
    if args.size == "dynamic" or (args.size and args.size[0] != args.size[1]):
        parser.error("a kit is for square images; give --size one number")


def write_kit(
    args: argparse.Namespace, model: M.Module, preprocessing: Preprocessing, metadata: dict
) -> tuple[dict[str, Any], str]:
    """Write a kit; return what was written, for `--json` and as plain text."""
    if preprocessing.channels != 3:
        raise UserError(
            f"a kit is for images of three colours, and the network takes {preprocessing.channels} "
            "channels; leave out --kit and use the board's own tools on the ONNX file"
        )
    from . import ascend, labels, rdk, rknn

    images = None
    if args.data:
        classes = metadata["classes"]
        images = labels.labelled_images(args.data, args.labels, model.num_classes, classes)
    if args.kit == "ascend":
        assert images is not None  # which `check` asks for
        listed = ascend.write_kit(model, preprocessing, *images, args.out, metadata)
    elif args.kit == "rknn":
        count = args.images or rknn.IMAGES
        listed = rknn.write_kit(
            model, preprocessing, args.calibration, args.out, count, metadata, images
        )
    else:
        count = args.images or rdk.IMAGES
        listed = rdk.write_kit(
            model, preprocessing, args.calibration, args.out, count, metadata, args.kit, args.int16
        )
    result = {**metadata, "kit": args.kit, "folder": args.out, "files": listed}
    text = (
        f"{args.kit} kit of {model.arch} in {args.out}: {', '.join(listed)}\n"
        f"instructions: {Path(args.out, 'README.txt')}"
    )
    return result, text
