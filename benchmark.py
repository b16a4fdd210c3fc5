#!/usr/bin/env python
"""Measure speed on this machine; variants take turns in one run, so that ratios can be trusted."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator

from models import environment

from tqdm import tqdm

import cli
import utils
from benchmarks import data_pipeline, report, training_step
from benchmarks import workers as worker_benchmark
from benchmarks.report import Rows

EXAMPLES = """\
  python benchmark.py infer --batch 1 8 --threads 1 2
  python benchmark.py infer --arch 'RepVGGA*' RepGhost100 --csv speed.csv --chart speed.png
  python benchmark.py throughput --model best.pkl --streams 1 4
  python benchmark.py train --arch RepVGGB0 --point 64x16 --rounds 5 --json
  python benchmark.py data --data imagenette
  python benchmark.py memory --point 128x16
  python benchmark.py workers
"""


def point(text: str) -> tuple[int, int]:
    """An argparse type: "64x16" is 64 px, batch 16."""
    size, _, batch = text.partition("x")
    if not (size.isdigit() and batch.isdigit() and int(size) and int(batch)):
        raise argparse.ArgumentTypeError(f"{text!r} is not PIXELSxBATCH, such as 64x16")
    return int(size), int(batch)


COUNT = cli.number(int, 1)


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


def add_inference(commands: argparse._SubParsersAction) -> None:
    """The sub-commands `infer` and `throughput`."""
    infer = commands.add_parser(
        "infer",
        description="Latency, images/s, peak memory and GFLOP/s of a network: train form and "
        "deploy form, .mge and ONNX files of export.py, under the runtimes that are installed "
        "(OpenVINO, and PyTorch with timm, are not of this project). Each in a process of its own.",
        examples="  python benchmark.py infer --arch 'RepVGG*' --size 224 --batch 1 8\n"
        "  python benchmark.py infer --model best.pkl --int8 best-int8.onnx --threads 1 2 4\n",
        help="a network in both forms and several runtimes: latency, images/s, memory",
    )
    throughput = commands.add_parser(
        "throughput",
        description="Several streams that feed a network single frames at once, each with a "
        "thread: time of a frame and frames per second, as boards are measured.",
        examples="  python benchmark.py throughput --arch RepVGGA0 RepGhost100 --streams 1 4\n",
        help="several streams at once: latency of a frame and frames per second",
    )
    for command in (infer, throughput):
        command.add_argument(
            "--arch",
            nargs="+",
            metavar="NAME",
            help="names or patterns such as 'RepVGG*' (default: the checkpoint's, or RepVGGA0)",
        )
        command.add_argument(
            "--model", metavar="FILE", help="checkpoint; without it the weights are random"
        )
        command.add_argument("--int8", metavar="FILE", help="its quantized ONNX file, timed too")
        command.add_argument(
            "--size", type=COUNT, default=224, metavar="PIXELS", help="side of the images"
        )
    counts = {
        "--batch": (infer, [1, 8], "images at once"),
        "--threads": (infer, [1, 2], "of each runtime"),
        "--streams": (throughput, [1, 4], "that feed frames at once"),
    }
    for option, (command, default, text) in counts.items():
        shown = " ".join(map(str, default))
        command.add_argument(
            option,
            type=COUNT,
            nargs="+",
            default=default,
            metavar="N",
            help=f"{text} (default: {shown})",
        )
    for command in (infer, throughput):
        command.add_argument("--rounds", type=COUNT, default=5, help="in which all take turns")
        command.add_argument(
            "--seconds",
            type=cli.number(float, 0, open_low=True),
            default=1.0,
            help="of a turn, and at least three passes",
        )


def add_training(commands: argparse._SubParsersAction) -> None:
    """The sub-commands `train`, `memory` and `workers`."""
    train = commands.add_parser(
        "train",
        description="Seconds of a training step: MegEngine as it comes against this project.",
        examples="  python benchmark.py train --point 64x16 32x64\n",
        help="a training step: MegEngine as it comes against this project",
    )
    memory = commands.add_parser(
        "memory",
        description="Peak memory and seconds of a training step, as usual and with --low-memory.",
        examples="  python benchmark.py memory --point 128x16\n",
        help="peak memory of a training step, as usual and with --low-memory, and its price",
    )
    workers = commands.add_parser(
        "workers",
        description="Seconds of a step of the training loop, its batch shared by 1, 2 ... workers.",
        examples="  python benchmark.py workers --point 224x64 --workers 1 2\n",
        help="a step of the training loop with one worker and with several",
    )
    workers.add_argument(
        "--workers",
        type=COUNT,
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="numbers of CPU workers; speed-ups are over the first (default: 1 2)",
    )
    points = {train: [(64, 16), (32, 64)], memory: [(128, 16)], workers: [(224, 64)]}
    for command, default in points.items():
        command.add_argument("--arch", type=cli.arch_name, default="RepVGGA0", metavar="NAME")
        shown = " ".join(f"{size}x{batch}" for size, batch in default)
        command.add_argument(
            "--point",
            type=point,
            nargs="+",
            default=default,
            metavar="PIXELSxBATCH",
            help=f"side of the input and images a step (default: {shown})",
        )
        command.add_argument(
            "--rounds",
            type=COUNT,
            default=3,
            help="of measurements, in which the variants take turns",
        )


def add_data(commands: argparse._SubParsersAction) -> None:
    """The sub-command `data`."""
    data = commands.add_parser(
        "data",
        description="Images/s of the data pipeline of training: Pillow's usual one, MegEngine as "
        "it comes, this project; everything from files to float32 batches.",
        examples="  python benchmark.py data --data imagenette --size 160\n",
        help="the data pipeline of training: Pillow, MegEngine as it comes, this project",
    )
    data.add_argument(
        "--data", metavar="DIR", required=True, help="a folder with images in it, at any depth"
    )
    data.add_argument(
        "--size", type=COUNT, default=224, metavar="PIXELS", help="side of the network's input"
    )
    data.add_argument(
        "--images",
        type=cli.number(int, 2),
        default=640,
        metavar="N",
        help="images a pass; where there are fewer, they are read again",
    )
    data.add_argument("--batch-size", type=COUNT, default=64, metavar="IMAGES", help="a batch")
    data.add_argument("--workers", type=COUNT, default=2, metavar="N", help="processes of the last")
    data.add_argument("--rounds", type=COUNT, default=5, help="timed passes of each variant")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    command = {
        "infer": time_inference,
        "throughput": time_throughput,
        "train": time_training,
        "memory": measure_memory,
        "workers": time_workers,
        "data": time_data,
    }
    title, rows = command[args.command](args)
    report.give_out(args, title, rows, report.LAYOUTS[args.command])
    return 0


def time_inference(args: argparse.Namespace) -> tuple[str, Rows]:
    """Every network at every batch and number of threads."""
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


def time_throughput(args: argparse.Namespace) -> tuple[str, Rows]:
    """Every network with every number of streams."""
    from benchmarks.inference.throughput import throughput

    rows = []
    for network, settings in networks(args, [1]):
        with progress() as bar:
            rows += throughput(network, args.size, args.streams, settings, args.int8, bar.update)
    return f"single frames, {rounds(args)} of {args.seconds:g} s", rows


def networks(args: argparse.Namespace, batches: list[int]) -> Iterator[tuple]:
    """Each network with how long to measure; what is left out is said on stderr."""
    from benchmarks.inference import candidates
    from benchmarks.inference.turns import Settings

    for arch in args.arch or ([None] if args.model else ["RepVGGA0"]):
        network = candidates.load(arch, args.model)
        if args.int8:
            candidates.check_int8(args.int8, network.arch, args.size, batches)
        for variant, why in candidates.left_out(network).items():
            print(f"{network.arch}: {variant} left out: {why}", file=sys.stderr)
        yield network, Settings(args.rounds, args.seconds)


def rounds(args: argparse.Namespace) -> str:
    """How many, in words: "1 round", "3 rounds"."""
    return f"{args.rounds} round{'s' * (args.rounds > 1)}"


def progress(total: int | None = None, unit: str = "turn") -> tqdm:
    """A bar that is seen on a terminal only."""
    return tqdm(total=total, unit=unit, leave=False, disable=None)


def time_training(args: argparse.Namespace) -> tuple[str, Rows]:
    """Each point in each variant."""
    rows = []
    with progress(len(args.point) * args.rounds * len(training_step.VARIANTS), "step") as bar:
        for at in points(args):
            seconds = training_step.seconds_per_step(at, args.rounds, after_step=bar.update)
            rows += training_step.summary(at, seconds)
    return f"training step, median of {args.rounds}, one process", rows


def points(args: argparse.Namespace) -> list[training_step.Point]:
    """What --arch and --point name."""
    return [training_step.Point(args.arch, size, batch) for size, batch in args.point]


def measure_memory(args: argparse.Namespace) -> tuple[str, Rows]:
    """Peak memory of a training step."""
    rows = [row for at in points(args) for row in training_step.memory_of_steps(at, args.rounds)]
    return (
        f"peak memory of a process and time of a step, median of {rounds(args)}, a process each"
    ), rows


def time_workers(args: argparse.Namespace) -> tuple[str, Rows]:
    """The loop with each number of workers."""
    rows = [
        row
        for at in points(args)
        for row in worker_benchmark.measure(at, args.workers, args.rounds)
    ]
    return f"a step of the training loop, median of {rounds(args)}", rows


def time_data(args: argparse.Namespace) -> tuple[str, Rows]:
    """The pipelines."""
    batches = args.images // args.batch_size
    if batches < 2:
        raise utils.UserError(
            f"--images {args.images} is less than two batches of {args.batch_size}, of which the "
            "first is left out; give more images or a smaller --batch-size"
        )
    dataset = data_pipeline.find_images(args.data, batches * args.batch_size)
    found = data_pipeline.variants(args.workers)
    with progress(args.rounds * len(found), "pass") as bar:
        rows = data_pipeline.summary(
            data_pipeline.measure(
                found, dataset, args.size, args.batch_size, batches, args.rounds, bar.update
            )
        )
    return (
        f"{dataset.name}, {args.size} px, batches of {args.batch_size}: images/s, and images/s of "
        f"processor time of a core, median of {rounds(args)}"
    ), rows


if __name__ == "__main__":
    environment.tune_for_training()
    utils.run(main)
