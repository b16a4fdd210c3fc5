"""The sub-commands of benchmark.py with their flags; those of int8 are in int8_options.py."""

from __future__ import annotations

import argparse

import cli


def add_counts(
    parser: argparse.ArgumentParser, flag: str, default: list[int], text: str, metavar: str = "N"
) -> None:
    """Add a flag that takes several positive numbers."""
    parser.add_argument(
        flag,
        type=cli.COUNT,
        nargs="+",
        default=default,
        metavar=metavar,
        help=f"{text} (default: {' '.join(map(str, default))})",
    )


def add_rounds(parser: argparse.ArgumentParser, default: int) -> None:
    """Add --rounds."""
    parser.add_argument(
        "--rounds",
        type=cli.COUNT,
        default=default,
        metavar="N",
        help="number of rounds; in each, every variant is measured once",
    )


def add_seconds(parser: argparse.ArgumentParser) -> None:
    """Add --seconds."""
    parser.add_argument(
        "--seconds",
        type=cli.number(float, 0, open_low=True),
        default=1.0,
        metavar="S",
        help="shortest time to run each variant in a round; at least three batches are run",
    )


def add_inference(commands: argparse._SubParsersAction) -> None:
    """Add the sub-commands `infer` and `throughput`."""
    infer = commands.add_parser(
        "infer",
        description="Measure latency, images/s, peak memory and GFLOP/s of a network: in train "
        "form and in deploy form, as .mge and ONNX files of export.py, under the runtimes that are "
        "installed (OpenVINO, and PyTorch with timm, are optional). Each variant runs in its own "
        "process.",
        examples="  python benchmark.py infer --arch 'RepVGG*' --size 224 --batch 1 8\n"
        "  python benchmark.py infer --model best.pkl --int8 best-int8.onnx --threads 1 2 4\n",
        help="measure latency, images/s and memory of a network in both forms and in several "
        "runtimes",
    )
    add_counts(infer, "--batch", [1, 8], "batch sizes to measure", "IMAGES")
    add_counts(infer, "--threads", [1, 2], "numbers of threads to give each runtime")
    infer.add_argument(
        "--scatter",
        type=cli.output_file,
        metavar="FILE",
        help="write a chart to this PNG file: reported ImageNet accuracy over measured latency, a "
        "point for each network",
    )
    infer.add_argument(
        "--forms",
        type=cli.output_file,
        metavar="FILE",
        help="write a chart to this PNG file: latency of each network in train form and in deploy "
        "form",
    )
    throughput = commands.add_parser(
        "throughput",
        description="Measure the mean time of a frame and frames per second when several streams, "
        "each with one thread, feed single frames to a network at the same time, as boards are "
        "benchmarked.",
        examples="  python benchmark.py throughput --arch RepVGGA0 RepGhost100 --streams 1 4\n",
        help="measure the latency of a frame and frames per second with several streams",
    )
    add_counts(throughput, "--streams", [1, 4], "numbers of streams that feed frames in parallel")
    for command in (infer, throughput):
        cli.add_flags(
            command,
            "--arch",
            type=str,
            nargs="+",
            help="architectures, as names, shell patterns such as 'RepVGG*' or 'all' (default: the "
            "checkpoint's architecture; without a checkpoint, RepVGGA0)",
        )
        cli.add_flags(
            command,
            "--model",
            help="checkpoint to measure: a file or folder, an http(s) URL, or SOURCE:NAME of "
            "published weights (default: random weights)",
        )
        cli.add_flags(command, "--entry")
        command.add_argument(
            "--int8", metavar="FILE", help="ONNX file of quantize.py to measure beside the others"
        )
        cli.add_flags(command, "--size", default=224, help="side of the square input images")
        command.add_argument(
            "--variants",
            nargs="+",
            default=["*"],
            metavar="PATTERN",
            help="variants to measure, as names or shell patterns such as 'ONNX*' and '*MegEngine' "
            "(default: all)",
        )
        add_rounds(command, 5)
        add_seconds(command)


def add_training(commands: argparse._SubParsersAction) -> None:
    """Add the sub-commands `train`, `memory`, `workers` and `all-reduce`."""
    train = commands.add_parser(
        "train",
        description="Measure the seconds of a training step with MegEngine's own operators and "
        "with this project's, also in bfloat16 (train.py --amp) if the processor has it; or, with "
        "--against pytorch, with PyTorch's and with this project's.",
        examples="  python benchmark.py train --point 64x16 32x64\n"
        "  python benchmark.py train --against pytorch --threads 1 2 --rounds 7\n",
        help="compare a training step with MegEngine's own operators and with this project's",
    )
    train.add_argument(
        "--against",
        choices=("stock", "pytorch"),
        default="stock",
        help="what to compare with: MegEngine's own operators in the same process, or PyTorch's "
        "eager mode with timm's same network in a process of its own (default: %(default)s)",
    )
    train.add_argument(
        "--threads",
        type=cli.COUNT,
        nargs="+",
        metavar="N",
        help="with --against pytorch, numbers of threads, each on a core of its own (default: 1)",
    )
    train.add_argument(
        "--avx2",
        action="store_true",
        help="with --against pytorch, let neither PyTorch nor this project use instructions newer "
        "than AVX2",
    )
    memory = commands.add_parser(
        "memory",
        description="Measure peak memory and seconds of a training step with and without "
        "--low-memory of train.py.",
        examples="  python benchmark.py memory --point 128x16\n",
        help="measure what --low-memory of train.py saves and costs",
    )
    workers = commands.add_parser(
        "workers",
        description="Measure the seconds of a step of the training loop when 1, 2 or more worker "
        "processes share each batch.",
        examples="  python benchmark.py workers --point 224x64 --workers 1 2\n",
        help="compare a step of the training loop with one worker and with several",
    )
    add_counts(
        workers, "--workers", [1, 2], "numbers of CPU workers; speed-ups are relative to the first"
    )
    points = {train: ["64x16", "32x64"], memory: ["128x16"], workers: ["224x64"]}
    for command, default in points.items():
        cli.add_flags(command, "--arch", default="RepVGGA0", help="architecture to train")
        command.add_argument(
            "--point",
            type=_point,
            nargs="+",
            default=[_point(text) for text in default],
            metavar="[ARCH:]PIXELSxBATCH",
            help="points to measure: side of the input images and batch size, preceded by an "
            f"architecture where it is not that of --arch (default: {' '.join(default)})",
        )
        add_rounds(command, 3)
    all_reduce = commands.add_parser(
        "all-reduce",
        description="Measure the seconds that several workers take to average the gradients of a "
        "network, as they do after every training step. Started by mpiexec or srun as train.py is, "
        "it measures the network between several hosts.",
        examples="  python benchmark.py all-reduce --ngpus 2\n"
        "  mpiexec -n 4 -hosts A,B python benchmark.py all-reduce\n",
        help="measure how long several workers take to average the gradients of a network",
    )
    cli.add_flags(
        all_reduce,
        "--arch",
        default="RepVGGA0",
        help="architecture whose gradients are averaged, for 1,000 classes",
    )
    cli.add_flags(all_reduce, "--ngpus")
    all_reduce.add_argument(
        "--rounds", type=cli.COUNT, default=15, metavar="N", help="number of all-reduces to time"
    )


def add_data(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command `data`."""
    data = commands.add_parser(
        "data",
        description="Measure images/s of the training data pipeline, from image files to float32 "
        "batches: a usual pipeline of Pillow, MegEngine's own, and this project's.",
        examples="  python benchmark.py data --data imagenette --size 160\n"
        "  python benchmark.py data --data imagenette imagenette.tar imagenette-shards\n",
        help="compare the training data pipeline with Pillow's and MegEngine's",
    )
    cli.add_flags(
        data,
        "--data",
        nargs="+",
        required=True,
        help="folder or archive of images, in which all are used; or several forms of the same "
        "data set, whose validation images this project's pipeline alone reads in turns",
    )
    cli.add_flags(data, "--size", default=224, help="side of the square images in a batch")
    cli.add_flags(
        data,
        "--images",
        type=cli.number(int, 2),
        default=640,
        help="number of images in a pass; if the folder has fewer, they are read again",
    )
    data.add_argument(
        "--batch-size",
        type=cli.COUNT,
        default=64,
        metavar="IMAGES",
        help="number of images in a batch",
    )
    cli.add_flags(
        data,
        "--workers",
        type=cli.COUNT,
        default=None,
        help="worker processes of this project's pipeline, which is also measured without workers "
        "(default: 2)",
    )
    add_rounds(data, 5)


def add_machine(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command `machine`."""
    commands.add_parser(
        "machine",
        description="Print the processor, the commit of this checkout and the versions of the "
        "packages that decide about results, for a bug report.",
        examples="  python benchmark.py machine\n",
        help="print the processor and the versions, for a bug report",
    )


def _point(text: str) -> tuple[str | None, int, int]:
    """Return architecture, side and batch size of "64x16" or "RepGhost100:64x16"; an argparse type.

    The architecture is None where it is not given.
    """
    arch, _, numbers = text.rpartition(":")
    size, _, batch = numbers.partition("x")
    if not (size.isdigit() and batch.isdigit() and int(size) and int(batch)):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not [ARCH:]PIXELSxBATCH, such as 64x16 or RepGhost100:64x16"
        )
    return cli.arch_name(arch) if arch else None, int(size), int(batch)
