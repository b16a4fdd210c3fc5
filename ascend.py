#!/usr/bin/env python
"""Tell what the results of an Ascend board mean: accuracy, and images per second."""

from __future__ import annotations

import argparse
import json

import cli
import utils
from deployment.boards.ascend_results import frames_per_second, score

EXAMPLES = """\
  python ascend.py score result/dumpOutput_device0 val_label.txt result.json
  python ascend.py parse result/perf_vision_batchsize_1_device_0.txt 310P
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "accuracy from the outputs that the benchmark tool dumped"
    command = commands.add_parser("score", description=about, examples=EXAMPLES, help=about)
    command.add_argument("dump", metavar="DUMP_DIR", help="folder with NAME_1.txt files")
    command.add_argument("labels", metavar="LABELS", help="val_label.txt of the kit")
    command.add_argument("out", metavar="OUT.json", help="file to write")
    about = "images/s from the benchmark tool's performance file"
    command = commands.add_parser("parse", description=about, examples=EXAMPLES, help=about)
    command.add_argument(
        "file", metavar="PERF_FILE", help="result/perf_vision_batchsize_N_device_D.txt"
    )
    command.add_argument("chip", metavar="CHIP", choices=("310", "310P"), help="310 or 310P")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.command == "parse":
        batch, rate = frames_per_second(args.file, args.chip)
        print(f"{args.chip} bs{batch} fps:{rate}")
        return 0
    result = score(args.dump, args.labels)
    utils.write_atomically(args.out, lambda file: file.write(json.dumps(result).encode()))
    for fact in result["value"]:
        print(f"{fact['key']}: {fact['value']}")
    return 0


if __name__ == "__main__":
    utils.run(main)
