#!/usr/bin/env python
"""Measure speed on this machine; variants take turns in one run, so that ratios can be trusted."""

from __future__ import annotations

import argparse
import json

import utils  # isort: skip  (before MegEngine: it sets the process environment)

from tqdm import tqdm

from training import benchmark

EXAMPLES = """\
  python benchmark.py train
  python benchmark.py train --arch RepVGGB0 --point 64x16 --rounds 5 --json
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
    train.add_argument("--arch", type=utils.arch_name, default="RepVGGA0", metavar="NAME")
    train.add_argument(
        "--point",
        type=point,
        nargs="+",
        default=[(64, 16), (32, 64)],
        metavar="PIXELSxBATCH",
        help="side of the input and images a step (default: 64x16 32x64)",
    )
    train.add_argument(
        "--rounds", type=utils.number(int, 1), default=3, help="timed steps of each variant"
    )
    train.add_argument("--json", action="store_true", help="print JSON instead of the table")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Time each point and print a table, or JSON."""
    args = parse_args(argv)
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


if __name__ == "__main__":
    utils.run(main)
