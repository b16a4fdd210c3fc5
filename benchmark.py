#!/usr/bin/env python
"""Measure speed and memory on this machine.

The variants of a measurement are run in turns, so that changes in the machine's speed affect all of
them alike and their ratios can be trusted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

import cli
import utils
from benchmarks import report
from benchmarks.report import Rows

if TYPE_CHECKING:  # MegEngine takes a second to import, which --help need not
    from benchmarks.training_step import Point

EXAMPLES = """\
  python benchmark.py infer --batch 1 8 --threads 1 2
  python benchmark.py infer --arch 'RepVGGA*' RepGhost100 --csv speed.csv --chart speed.png
  python benchmark.py infer --arch all --batch 1 --threads 1 --forms forms.png \\
      --variants '*form, MegEngine' 'ONNX, onnxruntime' --scatter accuracy.png --record networks
  python benchmark.py throughput --model best.pkl --streams 1 4
  python benchmark.py train --arch RepVGGB0 --point 64x16 --rounds 5 --json
  python benchmark.py data --data imagenette
  python benchmark.py memory --point 128x16
  python benchmark.py workers
"""


def point(text: str) -> tuple[int, int]:
    """Return side and batch size of a text such as "64x16"; an argparse type."""
    size, _, batch = text.partition("x")
    if not (size.isdigit() and batch.isdigit() and int(size) and int(batch)):
        raise argparse.ArgumentTypeError(f"{text!r} is not PIXELSxBATCH, such as 64x16")
    return int(size), int(batch)


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_inference(commands)
    add_training(commands)
    add_data(commands)
    for command in commands.choices.values():
        report.add_arguments(command)
    args = parser.parse_args(argv)
    if args.command in ("infer", "throughput"):
        args.arch = cli.arch_names(args.arch) if args.arch else []
        for option in ("model", "int8"):
            if getattr(args, option) and len(args.arch) > 1:
                parser.error(f"--{option} is of one architecture: give one --arch, or none")
    return args


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
        metavar="FILE",
        help="PNG file to draw the reported ImageNet accuracy over the latency of all networks in",
    )
    infer.add_argument(
        "--forms",
        metavar="FILE",
        help="PNG file to draw the latency of all networks in train form and in deploy form in",
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
        cli.add_flags(command, "--model", help="checkpoint to measure (default: random weights)")
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
        command.add_argument(
            "--seconds",
            type=cli.number(float, 0, open_low=True),
            default=1.0,
            metavar="S",
            help="shortest time to run each variant in a round; at least three batches are run",
        )


def add_training(commands: argparse._SubParsersAction) -> None:
    """Add the sub-commands `train`, `memory` and `workers`."""
    train = commands.add_parser(
        "train",
        description="Measure the seconds of a training step with MegEngine's own operators and "
        "with this project's.",
        examples="  python benchmark.py train --point 64x16 32x64\n",
        help="compare a training step with MegEngine's own operators and with this project's",
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
    points = {train: [(64, 16), (32, 64)], memory: [(128, 16)], workers: [(224, 64)]}
    for command, default in points.items():
        cli.add_flags(command, "--arch", default="RepVGGA0", help="architecture to train")
        shown = " ".join(f"{size}x{batch}" for size, batch in default)
        command.add_argument(
            "--point",
            type=point,
            nargs="+",
            default=default,
            metavar="PIXELSxBATCH",
            help=f"sides of the input images and batch sizes to measure (default: {shown})",
        )
        add_rounds(command, 3)


def add_data(commands: argparse._SubParsersAction) -> None:
    """Add the sub-command `data`."""
    data = commands.add_parser(
        "data",
        description="Measure images/s of the training data pipeline, from image files to float32 "
        "batches: a usual pipeline of Pillow, MegEngine's own, and this project's.",
        examples="  python benchmark.py data --data imagenette --size 160\n",
        help="compare the training data pipeline with Pillow's and MegEngine's",
    )
    cli.add_flags(
        data, "--data", required=True, help="folder of images; its subfolders are searched too"
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
        help="worker processes of this project's pipeline, which is also measured without workers",
    )
    add_rounds(data, 5)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    from models import environment

    environment.hide_unsupported_gpu()
    environment.tune_for_training()
    command = {
        "infer": time_inference,
        "throughput": time_throughput,
        "train": time_training,
        "memory": measure_memory,
        "workers": time_workers,
        "data": time_data,
    }
    title, rows = command[args.command](args)
    report.write_report(args, title, rows, report.LAYOUTS[args.command])
    if args.command == "infer":
        draw_networks(args, rows)
    return 0


def time_inference(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure every network with every batch size and number of threads."""
    from benchmarks.inference.latency import inference

    rows = []
    for network, settings in networks(args, args.batch):
        with progress() as bar:
            rows += inference(
                network, args.size, args.batch, args.threads, settings, args.int8, bar.update
            )
    peaks = (
        f"{max(row['peak_gflops'] for row in rows if row['threads'] == count):.0f} with {count}"
        for count in args.threads
    )
    return (
        f"inference, {rounds(args)} of {args.seconds:g} s; the peak is that of float32 "
        f"matrix products, GFLOP/s: {', '.join(peaks)} thread(s)"
    ), rows


def draw_networks(args: argparse.Namespace, rows: Rows) -> None:
    """Write the pictures of all networks that --scatter and --forms name."""
    from benchmarks import pictures

    for path, draw in ((args.scatter, pictures.scatter), (args.forms, pictures.forms)):
        if path:
            picture = draw(rows)
            utils.write_atomically(path, lambda file, content=picture: file.write(content))


def time_throughput(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure every network with every number of streams."""
    from benchmarks.inference.throughput import throughput

    rows = []
    for network, settings in networks(args, [1]):
        with progress() as bar:
            rows += throughput(network, args.size, args.streams, settings, args.int8, bar.update)
    return f"single frames, {rounds(args)} of {args.seconds:g} s", rows


def networks(args: argparse.Namespace, batches: list[int]) -> Iterator[tuple]:
    """Yield each network with its settings; print to stderr which variants are left out."""
    from benchmarks.inference import candidates
    from benchmarks.inference.turns import Settings

    for arch in args.arch or ([None] if args.model else ["RepVGGA0"]):
        network = candidates.load(arch, args.model)
        if args.int8:
            candidates.check_int8(args.int8, network.arch, args.size, batches)
        for variant, reason in candidates.left_out(network).items():
            print(f"{network.arch}: {variant} left out: {reason}", file=sys.stderr)
        yield network, Settings(args.rounds, args.seconds, tuple(args.variants))


def rounds(args: argparse.Namespace) -> str:
    """Return the number of rounds in words: "1 round", "3 rounds"."""
    return f"{args.rounds} round{'s' * (args.rounds > 1)}"


def progress(total: int | None = None, unit: str = "turn") -> tqdm:
    """Return a progress bar, which is shown on a terminal only."""
    return tqdm(total=total, unit=unit, leave=False, disable=None)


def time_training(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure a training step at each point in each variant."""
    from benchmarks import training_step

    rows = []
    with progress(len(args.point) * args.rounds * len(training_step.VARIANTS), "step") as bar:
        for at in points(args):
            seconds = training_step.seconds_per_step(at, args.rounds, after_step=bar.update)
            rows += training_step.summary(at, seconds)
    return f"training step, median of {args.rounds}, one process", rows


def points(args: argparse.Namespace) -> list[Point]:
    """Return the points that --arch and --point name."""
    from benchmarks.training_step import Point

    return [Point(args.arch, size, batch) for size, batch in args.point]


def measure_memory(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure the peak memory of a training step at each point."""
    from benchmarks import training_step

    rows = [row for at in points(args) for row in training_step.memory_of_steps(at, args.rounds)]
    return (
        f"peak memory of a process and time of a step, median of {rounds(args)}, a process each"
    ), rows


def time_workers(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure a step of the training loop at each point with each number of workers."""
    from benchmarks import workers

    rows = [row for at in points(args) for row in workers.measure(at, args.workers, args.rounds)]
    return f"a step of the training loop, median of {rounds(args)}", rows


def time_data(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure every data pipeline on the same images."""
    from benchmarks import data_pipeline

    batches = args.images // args.batch_size
    if batches < 2:
        raise utils.UserError(
            f"--images {args.images} is less than two batches of {args.batch_size}, of which the "
            "first is left out; give more images or a smaller --batch-size"
        )
    dataset = data_pipeline.find_images(args.data, batches * args.batch_size)
    pipelines = data_pipeline.variants(args.workers)
    with progress(args.rounds * len(pipelines), "pass") as bar:
        rows = data_pipeline.summary(
            data_pipeline.measure(
                pipelines, dataset, args.size, args.batch_size, batches, args.rounds, bar.update
            )
        )
    return (
        f"{dataset.name}, {args.size} px, batches of {args.batch_size}: images/s, and images/s of "
        f"processor time of a core, median of {rounds(args)}"
    ), rows


if __name__ == "__main__":
    utils.run(main)
