"""The sub-commands of benchmark.py for int8 networks and boards, with their flags."""

from __future__ import annotations

import argparse

import cli
from deployment.int8.dialects import DIALECTS

from .options import add_rounds, add_seconds


def add_int8(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command `int8`."""
    int8 = commands.add_parser(
        "int8",
        description="Measure networks in float and in int8: top-1, SQNR of the logits, images of "
        "the same class, and images/s of single images on one thread, under onnxruntime and, where "
        "it is installed, OpenVINO. The int8 networks are what a converter writes by default, with "
        "a scale for each tensor or for each channel, and those of quantize.py.",
        examples="  python benchmark.py int8 --model a0.pkl vit.pkl --calibration cifar10/train "
        "--data cifar10\n"
        "  python benchmark.py int8 --model a0.pkl --qat a0-qat.pkl --calibration cifar10/train "
        "--data cifar10 --record int8_families\n",
        help="compare networks in float and in int8: accuracy and speed",
    )
    cli.add_flags(
        int8,
        "--model",
        nargs="+",
        required=True,
        help="checkpoints of float networks, or their ONNX files of export.py",
    )
    int8.add_argument(
        "--qat",
        nargs="+",
        default=[],
        metavar="FILE",
        help="checkpoints of train.py --qat; each is a further row of the network of its "
        "architecture",
    )
    int8.add_argument(
        "--target",
        nargs="+",
        default=[],
        choices=tuple(DIALECTS),
        metavar="NAME",
        help="further targets of quantize.py to measure, run by onnxruntime: openvino, tensorrt, "
        "rknn",
    )
    cli.add_flags(int8, "--calibration", required=True)
    cli.add_flags(int8, "--images", default=64)
    cli.add_flags(int8, "--data", required=True)
    cli.add_flags(int8, "--val-list")
    cli.add_preprocessing_flags(int8)
    add_rounds(int8, 5)
    add_seconds(int8)


def add_nv12(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command `nv12`."""
    nv12 = commands.add_parser(
        "nv12",
        description="Measure the accuracy of a network on images as they are, through the NV12 of "
        "an RDK board, and through NV12 whose range of values is mistaken, each centre cropped and "
        "letterboxed.",
        examples="  python benchmark.py nv12 --model MobileOneS0.onnx --data imagenette\n",
        help="measure what NV12 and letterboxing on an RDK board cost in accuracy",
    )
    cli.add_flags(
        nv12,
        "--model",
        required=True,
        help="checkpoint, .onnx or .mge file: a file or folder, an http(s) URL, or SOURCE:NAME of "
        "published weights",
    )
    cli.add_flags(nv12, "--data", required=True)
    cli.add_preprocessing_flags(nv12)


def add_rknn(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command `rknn`."""
    rknn = commands.add_parser(
        "rknn",
        description="Measure the accuracy of networks in the simulator of rknn-toolkit2, with the "
        "ranges that each of its algorithms chooses and with those of int8 files of quantize.py "
        "--target rknn that lie in the kits.",
        examples="  python benchmark.py rknn --kit kit --python rknn/bin/python --images 200\n",
        help="compare how int8's ranges are chosen, in Rockchip's simulator",
    )
    rknn.add_argument(
        "--kit",
        nargs="+",
        required=True,
        metavar="FOLDER",
        help="folders of kits that export.py wrote with --kit rknn and --data",
    )
    rknn.add_argument(
        "--python",
        required=True,
        metavar="FILE",
        help="Python of an environment with rknn-toolkit2",
    )
    algorithms = ["normal", "kl_divergence", "mmse"]
    rknn.add_argument(
        "--algorithms",
        nargs="*",
        choices=algorithms,
        default=algorithms,
        metavar="NAME",
        help="the toolkit's algorithms to measure: normal, kl_divergence and mmse, which takes "
        "minutes (default: all)",
    )
    rknn.add_argument("--target", default="rk3588", metavar="CHIP", help="chip to simulate")
    cli.add_flags(
        rknn, "--images", help="number of images to simulate, taken evenly (default: all)"
    )
