#!/usr/bin/env python
"""Verify that a fused network computes the same function as the network it was made from.

Both forms are compared on random images. Every batch norm and every weight is random too, so that
an error in any part of the fusion shows. Each kind of block is verified alone, then whole networks.
With `--model` it is a checkpoint, with its own weights.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import cli
import utils

if TYPE_CHECKING:  # MegEngine takes a second to import, which --help need not
    from models import equivalence

# one of each structural kind: dense, made for int8, grouped, SE before the ReLU, SE after it,
# several branches, depthwise with SE, a batch norm after the sum and two heads, ghost modules,
# a subtracted branch and layer scales, large kernels
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
    "FastViTT8",
    "RepLKNet31B",
]
BATCH = 8
SIZE = 64
LARGE_BATCH = 2  # of larger images, which take longer

EXAMPLES = """\
  python verify.py                                      one network of each kind
  python verify.py --arch all                           every network
  python verify.py --arch RepVGGA0 repvgg_b1g4 --size 224
  python verify.py --model checkpoints/RepVGGA0/demo/best.pkl
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    what = parser.add_argument_group("what to verify")
    what.add_argument("--arch", nargs="+", metavar="NAME", default=None,
                      help="names of networks, or 'all'; patterns such as 'RepVGGB*' work too "
                           f"(default: {' '.join(DEFAULT_ARCHS)})")  # fmt: skip
    cli.add_flags(what, "--model", help="a train-form checkpoint to verify instead")
    cli.add_flags(
        what,
        "--size",
        help="side of the random images (default: that of a checkpoint's own images, else "
        f"{SIZE}, or more where a kernel is larger than the last maps would be)",
    )
    cli.add_flags(parser.add_argument_group("output"), "--json")
    args = parser.parse_args(argv)
    if args.model is None:
        args.arch = cli.arch_names(args.arch or DEFAULT_ARCHS)
    elif args.arch is not None and len(args.arch) != 1:
        parser.error("--model verifies one checkpoint: give one --arch, or none")
    return args


def comparisons(args: argparse.Namespace) -> Iterator[tuple[str, equivalence.Equivalence]]:
    """Compare both forms of every block and network that the arguments name: (name, result)."""
    import models
    from models import equivalence

    import numpy as np

    import weights
    from weights import checkpoint

    rng = np.random.default_rng(0)

    def random_images(size: int, batch: int = BATCH) -> np.ndarray:
        return rng.standard_normal((batch, 3, size, size)).astype(np.float32)

    if args.model:
        arch = args.arch and models.canonical_name(args.arch[0])
        trained = checkpoint.read(args.model, arch)
        network = weights.load(trained, arch, deploy=False)
        # At a size it was not trained at, logits may reach 1e7, and rounding errors grow with them.
        images = random_images(args.size or trained.preprocessing.size)
        yield network.arch, equivalence.compare(network, images)
        return
    images = random_images(args.size or SIZE)
    for name, (block, config) in models.BLOCKS.items():
        channels = config.get("in_channels") or config["channels"]
        side = max(14, config.get("kernel_size", 0) + 1)
        maps = rng.standard_normal((BATCH, channels, side, side)).astype(np.float32)
        network = block(**config)
        equivalence.randomize(network, maps)
        yield name, equivalence.compare(network, maps)
    for name in args.arch:
        network = models.create(name)
        shown = images
        if not args.size and network.check_size > SIZE:
            shown = random_images(network.check_size, LARGE_BATCH)
        equivalence.randomize(network, shown)
        yield name, equivalence.compare(network, shown)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    import models
    from models import environment, equivalence

    from tqdm import tqdm

    environment.tune_for_training()
    line = "{:39} {:>11} {:>2} {:>11} {:>10} {:>10} {:>7}  {}"
    header = line.format(
        "", "parameters", "->", "deployed", "max error", "relative", "argmax", "verdict"
    )
    results, failed = [], []
    if not args.json:
        print(header)
    total = 1 if args.model else len(models.BLOCKS) + len(args.arch)
    for name, result in tqdm(comparisons(args), total=total, leave=False, disable=None):
        row = line.format(
            name,
            f"{result.train_parameters:,}",
            "->",
            f"{result.deploy_parameters:,}",
            f"{result.max_abs_error:.1e}",
            f"{result.relative_error:.1e}",
            f"{result.argmax_agreement:.0%}",
            "equal" if result.holds else "DIFFERENT",
        )
        results.append({"name": name, **result._asdict(), "holds": result.holds})
        if not result.holds:
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
    utils.run(main)
