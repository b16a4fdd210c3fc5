#!/usr/bin/env python
"""Compute accuracy and images per second from the result files of an Ascend board."""

from __future__ import annotations

import argparse
import json

import cli
import utils
from deployment.boards.ascend_results import frames_per_second, score

EXAMPLES = """\
  python ascend.py score result val_label.txt result.json              outputs of ais_bench
  python ascend.py score result_summary.json val_label.txt result.json
  python ascend.py parse result_summary.json 310P
  python ascend.py score result/dumpOutput_device0 val_label.txt result.json
  python ascend.py parse result/perf_vision_batchsize_1_device_0.txt 310P
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    about = "compute the accuracy from the outputs that ais_bench or the benchmark tool wrote"
    command = commands.add_parser(
        "score", description=about.capitalize() + ".", examples=EXAMPLES, help=about
    )
    command.add_argument(
        "dump",
        metavar="DUMP",
        help="folder of the outputs: NAME_0.npy, .bin or .txt of ais_bench, NAME_1.txt of the "
        "benchmark tool; or ais_bench's NAME_summary.json",
    )
    command.add_argument(
        "labels",
        metavar="LABELS",
        help="label file of the kit, val_label.txt; if the network has 1001 outputs, the first one "
        "is taken for a background class that the labels do not count",
    )
    command.add_argument("out", metavar="OUT.json", help="JSON file to write the accuracies to")
    about = "compute images per second from the performance file of ais_bench or the benchmark tool"
    command = commands.add_parser(
        "parse", description=about.capitalize() + ".", examples=EXAMPLES, help=about
    )
    command.add_argument(
        "file",
        metavar="PERF_FILE",
        help="performance file: NAME_summary.json of ais_bench, or "
        "result/perf_vision_batchsize_N_device_D.txt of the benchmark tool",
    )
    command.add_argument(
        "chip", metavar="CHIP", choices=("310", "310P"), help="chip of the board: %(choices)s"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if args.command == "parse":
        batch, rate = frames_per_second(args.file, args.chip)
        print(f"{args.chip} bs{batch} fps:{rate}")
        return 0
    for source in (args.labels, args.dump):
        utils.assert_other_file(source, args.out, "OUT.json")
    result = score(args.dump, args.labels)
    utils.write_atomically(args.out, lambda file: file.write(json.dumps(result).encode()))
    for fact in result["value"]:
        print(f"{fact['key']}: {fact['value']}")
    return 0


if __name__ == "__main__":
    utils.run(main)
