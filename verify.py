#!/usr/bin/env python
"""Prove that the fused network computes the same function as the trained one.

Every batch norm and every weight is random, so that an error in any part of the fusion shows.
Each kind of block is checked alone, then whole networks. `--model` proves a checkpoint of yours.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator

import models
from models import environment, equivalence

import numpy as np
from tqdm import tqdm

import cli
import utils
import weights
from weights import checkpoint

# one of each structural kind: dense, made for int8, grouped, SE before the ReLU, SE after it,
# several branches, depthwise with SE, a batch norm after the sum and two heads, ghost modules
DEFAULT_ARCHS = [
    "RepVGGA0",
    "RepVGGA0-qa",
    "RepVGGB1g4",
    "RepVGGD2se",
    "RepVGGplusL2pse",
    "MobileOneS0",
    "MobileOneS4",
    "RepViTM0_6",
    "RepGhost050",
]
BATCH = 8
SIZE = 64

EXAMPLES = """\
  python verify.py                                      one network of each kind
  python verify.py --arch all                           every network
  python verify.py --arch RepVGGA0 repvgg_b1g4 --size 224
  python verify.py --model checkpoints/RepVGGA0/demo/best.pkl
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    what = parser.add_argument_group("what to prove")
    what.add_argument("--arch", nargs="+", metavar="NAME", default=None,
                      help="networks, or 'all'; patterns such as 'RepVGGB*' work too "
                           f"(default: {' '.join(DEFAULT_ARCHS)})")  # fmt: skip
    what.add_argument("--model", metavar="FILE", help="a train-form checkpoint to prove instead")
    what.add_argument("--size", type=cli.number(int, 1), metavar="PIXELS",
                      help="side of the random images (default: that of a checkpoint's own images, "
                           f"else {SIZE})")  # fmt: skip
    output = parser.add_argument_group("output")
    output.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args(argv)
    if args.model is None:
        args.arch = cli.arch_names(args.arch or DEFAULT_ARCHS)
    elif args.arch is not None and len(args.arch) != 1:
        parser.error("--model proves one checkpoint: give one --arch, or none")
    return args


def proofs(args: argparse.Namespace) -> Iterator[tuple[str, equivalence.Equivalence]]:
    rng = np.random.default_rng(0)

    def random_images(size: int) -> np.ndarray:
        return rng.standard_normal((BATCH, 3, size, size)).astype(np.float32)

    if args.model:
        arch = args.arch and models.canonical_name(args.arch[0])
        found = checkpoint.read(args.model, arch)
        network = weights.load(found, arch, deploy=False)
        # At another size than it has learnt, logits may reach 1e7 and rounding errors as well.
        images = random_images(args.size or found.preprocessing.size)
        yield network.arch, equivalence.compare(network, images)
        return
    images = random_images(args.size or SIZE)
    for name, (block, config) in models.BLOCKS.items():
        channels = config.get("in_channels") or config["channels"]
        maps = rng.standard_normal((BATCH, channels, 14, 14)).astype(np.float32)
        network = block(**config)
        equivalence.randomize(network, maps)
        yield name, equivalence.compare(network, maps)
    for name in args.arch:
        network = models.create(name)
        equivalence.randomize(network, images)
        yield name, equivalence.compare(network, images)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    line = "{:39} {:>11} {:>2} {:>11} {:>10} {:>10} {:>7}  {}"
    header = line.format(
        "", "parameters", "->", "deployed", "max error", "relative", "argmax", "verdict"
    )
    results, failed = [], []
    if not args.json:
        print(header)
    total = 1 if args.model else len(models.BLOCKS) + len(args.arch)
    for name, proof in tqdm(proofs(args), total=total, leave=False, disable=None):
        row = line.format(
            name,
            f"{proof.train_parameters:,}",
            "->",
            f"{proof.deploy_parameters:,}",
            f"{proof.max_abs_error:.1e}",
            f"{proof.relative_error:.1e}",
            f"{proof.argmax_agreement:.0%}",
            "equal" if proof.holds else "DIFFERENT",
        )
        results.append({"name": name, **proof._asdict(), "holds": proof.holds})
        if not proof.holds:
            failed.append(row)
        if not args.json:
            tqdm.write(row)
    if args.json:
        print(json.dumps(results, indent=2))
    elif not failed:
        print(f"all {len(results)} equal: relative error <= {equivalence.TOLERANCE:.0e}")
    if failed:
        out = sys.stderr if args.json else sys.stdout
        print(
            f"\n{len(failed)} of {len(results)} differ by more than {equivalence.TOLERANCE:.0e}:",
            file=out,
        )
        print("\n".join(failed), file=out)
    return 1 if failed else 0


if __name__ == "__main__":
    environment.tune_for_training()
    utils.run(main)
