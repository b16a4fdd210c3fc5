#!/usr/bin/env python
"""Measure speed and memory on this machine.

The variants of a measurement are run in turns, so that changes in the machine's speed affect all of
them alike and their ratios can be trusted.
"""

from __future__ import annotations

import argparse
from functools import partial

import cli
import utils
from benchmarks import int8_options, options, report

EXAMPLES = """\
  python benchmark.py infer --batch 1 8 --threads 1 2
  python benchmark.py infer --arch 'RepVGGA*' RepGhost100 --csv speed.csv --chart speed.png
  python benchmark.py infer --arch all --batch 1 --threads 1 --forms forms.png \\
      --variants '*form, MegEngine' 'ONNX, onnxruntime' --scatter accuracy.png
  python benchmark.py throughput --model best.pkl --streams 1 4
  python benchmark.py train --arch RepVGGB0 --point 64x16 --rounds 5 --json
  python benchmark.py data --data imagenette
  python benchmark.py int8 --model best.pkl --calibration imagenette/train --data imagenette
  python benchmark.py memory --point 128x16
  python benchmark.py workers
  python benchmark.py all-reduce --ngpus 2
  python benchmark.py nv12 --model MobileOneS0.onnx --data imagenette
  python benchmark.py rknn --kit kit --python rknn/bin/python --images 200
  python benchmark.py machine
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    options.add_inference(commands)
    options.add_training(commands)
    options.add_data(commands)
    int8_options.add_int8(commands)
    int8_options.add_nv12(commands)
    int8_options.add_rknn(commands)
    for command in commands.choices.values():
        report.add_arguments(command)
    options.add_machine(commands)
    args = parser.parse_args(argv)
    if args.command in ("infer", "throughput"):
        args.arch = cli.arch_names(args.arch) if args.arch else []
        for option in ("model", "int8"):
            if getattr(args, option) and len(args.arch) > 1:
                parser.error(f"--{option} is of one architecture: give one --arch, or none")
        if args.entry and not args.model:
            parser.error("--entry needs --model, the file of several sets of weights")
    if args.command == "train" and args.against != "pytorch" and (args.threads or args.avx2):
        parser.error("--threads and --avx2 are for --against pytorch")
    if args.command == "data" and len(args.data) > 1 and args.workers:
        parser.error("--workers is for one --data; several forms are read without workers")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.command == "machine":
        show_machine()
        return 0

    from models import environment  # takes a second, which --help need not

    from benchmarks import commands

    environment.hide_unused_gpus()
    environment.tune_for_computing()
    if args.command == "all-reduce":
        from training.distributed import launch

        return launch.run(partial(commands.time_all_reduce, args), args.ngpus)
    failure = None
    try:
        title, rows = commands.MEASUREMENTS[args.command](args)
    except commands.Incomplete as error:
        title, rows, failure = "measured before the error", error.rows, error
        args.record = None  # which has all networks
    against = args.command == "train" and args.against == "pytorch"
    layout = report.LAYOUTS["against" if against else args.command]
    try:
        if args.command == "infer":
            commands.draw_networks(args, rows)
    finally:
        report.write_report(args, title, rows, layout)
    if failure is not None:
        raise failure
    return 0


def show_machine() -> None:
    """Print the processor, the commit of this checkout and the versions of the packages."""
    from benchmarks import record

    print(f"machine: {record.machine()}")
    print(f"commit: {record.commit()}")
    for package, version in record.versions().items():
        print(f"{package}: {version}")


if __name__ == "__main__":
    utils.run(main)
