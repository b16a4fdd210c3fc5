#!/usr/bin/env python
"""Measure speed on this machine; variants take turns in one run, so that ratios can be trusted."""

from __future__ import annotations

import argparse
import json

import utils  # isort: skip  (before MegEngine: it sets the process environment)

from tqdm import tqdm

from data import benchmark as data_benchmark
from training import benchmark, benchmark_workers

EXAMPLES = """\
  python benchmark.py train
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


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = utils.ArgumentParser(__doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
        type=utils.number(int, 1),
        nargs="+",
        default=[1, 2],
        metavar="N",
        help="numbers of CPU workers; speed-ups are over the first (default: 1 2)",
    )
    points = {train: [(64, 16), (32, 64)], memory: [(128, 16)], workers: [(224, 64)]}
    for command, default in points.items():
        command.add_argument("--arch", type=utils.arch_name, default="RepVGGA0", metavar="NAME")
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
            type=utils.number(int, 1),
            default=3,
            help="of measurements, in which the variants take turns",
        )
        command.add_argument("--json", action="store_true", help="print JSON instead of the table")
    add_data(commands)
    return parser.parse_args(argv)


def add_data(commands: argparse._SubParsersAction) -> None:
    """The sub-command `data`."""
    count = utils.number(int, 1)
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
        "--size", type=count, default=224, metavar="PIXELS", help="side of the network's input"
    )
    data.add_argument(
        "--images",
        type=utils.number(int, 2),
        default=640,
        metavar="N",
        help="images a pass; where there are fewer, they are read again",
    )
    data.add_argument("--batch-size", type=count, default=64, metavar="IMAGES", help="a batch")
    data.add_argument("--workers", type=count, default=2, metavar="N", help="processes of the last")
    data.add_argument("--rounds", type=count, default=5, help="timed passes of each variant")
    data.add_argument("--json", action="store_true", help="print JSON instead of the table")


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    command = {
        "train": time_training,
        "memory": measure_memory,
        "workers": time_workers,
        "data": time_data,
    }
    return command[args.command](args)


def time_training(args: argparse.Namespace) -> int:
    """Time each point and print a table, or JSON."""
    rows = []
    steps = len(args.point) * args.rounds * len(benchmark.VARIANTS)
    with tqdm(total=steps, unit="step", leave=False, disable=None) as bar:
        for size, batch in args.point:
            at = benchmark.Point(args.arch, size, batch)
            seconds = benchmark.seconds_per_step(at, args.rounds, after_step=bar.update)
            rows += benchmark.summary(at, seconds)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"training step, median of {args.rounds} (fastest to slowest), one process")
    for row in rows:
        print(
            f"{row['arch']}, {row['size']:3} px, batch {row['batch']:3}: {row['variant']:9} "
            f"{row['seconds']:7.3f} s ({row['fastest']:.3f} to {row['slowest']:.3f}), "
            f"{row['images_per_second']:6.1f} images/s, {row['speedup']:5.1f} x stock"
        )
    return 0


def time_workers(args: argparse.Namespace) -> int:
    """Time the loop with each number of workers and print a table, or JSON."""
    rows = []
    for size, batch in args.point:
        point = benchmark.Point(args.arch, size, batch)
        rows += benchmark_workers.measure(point, args.workers, args.rounds)
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(f"a step of the training loop, median of {args.rounds} runs (fastest to slowest)")
    for row in rows:
        print(
            f"{row['arch']}, {row['size']:3} px, batch {row['batch']:3}: {row['workers']} workers "
            f"{row['seconds']:7.3f} s ({row['fastest']:.3f} to {row['slowest']:.3f}), "
            f"{row['images_per_second']:6.1f} images/s, {row['speedup']:5.2f} x the first"
        )
    return 0


def time_data(args: argparse.Namespace) -> int:
    """Time the pipelines and print a table, or JSON."""
    batches = args.images // args.batch_size
    if batches < 2:
        raise utils.UserError(
            f"--images {args.images} is less than two batches of {args.batch_size}, of which the "
            "first is left out; give more images or a smaller --batch-size"
        )
    dataset = data_benchmark.find_images(args.data, batches * args.batch_size)
    found = data_benchmark.variants(dataset, args.size, args.batch_size, args.workers)
    with tqdm(total=args.rounds * len(found), unit="pass", leave=False, disable=None) as bar:
        rows = data_benchmark.summary(
            data_benchmark.measure(found, batches, args.rounds, after_pass=bar.update)
        )
    if args.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(
        f"{dataset.name}, {args.size} px, batches of {args.batch_size}: images/s, and images/s of "
        f"processor time of a core, median of {args.rounds} passes (slowest to fastest)"
    )
    for row in rows:
        print(
            f"{row['variant']:16} {row['images_per_second']:6.0f}  a core {row['per_core']:6.0f} "
            f"({row['slowest']:.0f} to {row['fastest']:.0f}), {row['times_first']:.2f} x Pillow"
        )
    return 0


def measure_memory(args: argparse.Namespace) -> int:
    """Peak memory of a training step."""
    points = [benchmark.Point(args.arch, size, batch) for size, batch in args.point]
    found = {str(at): benchmark.memory_of_steps(at, args.rounds) for at in points}
    if args.json:
        print(json.dumps(found, indent=2))
        return 0
    print(f"peak memory of a process and time of a step, median of {args.rounds} processes each")
    for at, rows in found.items():
        for row in rows:
            less = rows[0]["peak_mb"] / row["peak_mb"]
            price = row["seconds"] / rows[0]["seconds"]
            print(
                f"{at}: {row['variant']:10} {row['peak_mb']:6.0f} MB, {less:.2f} x less, "
                f"{row['seconds']:.3f} s, {price:.2f} x the time"
            )
    return 0


if __name__ == "__main__":
    utils.run(main)
