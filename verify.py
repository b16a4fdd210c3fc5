#!/usr/bin/env python
"""Verify that a fused network computes the same function as the network it was made from.

Both forms are compared on random images, and again in float64 where float32 shows a difference.
Every batch norm and every weight is random too, so that an error in any part of the fusion shows.
Each kind of block is verified alone, then whole networks. With --model, a checkpoint is verified
instead, with its own weights.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import cli
import utils

if TYPE_CHECKING:  # MegEngine takes a second to import, which --help need not
    from models import equivalence

    import megengine.module as M
    import numpy as np

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
    cli.add_flags(
        what,
        "--model",
        help="train-form checkpoint to verify instead: a file or folder, an http(s) URL, or "
        "SOURCE:NAME of published weights",
    )
    cli.add_flags(what, "--entry")
    cli.add_flags(
        what,
        "--size",
        help=f"side of the random images (default: {SIZE}, or more where a kernel would meet "
        "padding alone; with --model, at least the side of the checkpoint's images)",
    )
    cli.add_preprocessing_flags(parser)
    cli.add_flags(parser.add_argument_group("output"), "--json")
    args = parser.parse_args(argv)
    cli.refuse_without_model(parser, args)
    if args.arch or args.model is None:
        args.arch = cli.arch_names(args.arch or DEFAULT_ARCHS)
    if args.model and args.arch and len(args.arch) != 1:
        parser.error("--model verifies one checkpoint: give one --arch, or none")
    return args


def comparisons(args: argparse.Namespace) -> Iterator[tuple[str, equivalence.Equivalence]]:
    """Compare both forms of every block and network that the arguments name: (name, result)."""
    if args.model:
        yield of_checkpoint(args)
    else:
        yield from of_blocks()
        for name in args.arch:
            yield of_network(name, args.size)


def of_checkpoint(args: argparse.Namespace) -> tuple[str, equivalence.Equivalence]:
    """Compare both forms of the checkpoint of --model, and print how its images are prepared."""
    from tqdm import tqdm

    import weights
    from deployment import fusion_check
    from weights import catalog, checkpoint, stated_preprocessing

    arch = args.arch[0] if args.arch else None
    saved = checkpoint.read(
        catalog.locate(args.model),
        arch,
        entry=args.entry,
        stated=stated_preprocessing.of_flags(args),
        color_matters=False,
    )
    if not args.json:
        for line in stated_preprocessing.lines(saved.preprocessing, saved.classes, saved.origins):
            tqdm.write(line)
    network = weights.load(saved, arch, deploy=False, classifier=False)
    size = args.size or max(saved.preprocessing.size, network.check_size)
    warn_of_small(network, size)
    batch = BATCH if network.check_size <= SIZE else LARGE_BATCH
    images = random_images(batch, network.in_chans, size)
    return network.arch, fusion_check.compare(network, images)


def of_blocks() -> Iterator[tuple[str, equivalence.Equivalence]]:
    """Compare both forms of each kind of block on random maps."""
    import models
    from models import equivalence

    import numpy as np

    for name, (block, config) in models.BLOCKS.items():
        channels = config.get("in_channels") or config["channels"]
        maps = random_images(BATCH, channels, max(14, config.get("kernel_size", 0) + 1))
        # some variances are so small that an epsilon shows in a batch norm of the maps themselves
        scale = 10 ** np.random.default_rng(0).uniform(-2, 0, (channels, 1, 1))
        maps = (maps * scale).astype(np.float32)
        network = block(**config)
        equivalence.randomize(network, maps)
        yield name, equivalence.compare(network, maps)


def of_network(name: str, size: int | None) -> tuple[str, equivalence.Equivalence]:
    """Compare both forms of a network with random weights; without a size, at one that suffices."""
    import models
    from models import equivalence

    from deployment import fusion_check

    network = models.create(name)
    is_large = size is None and network.check_size > SIZE
    batch = LARGE_BATCH if is_large else BATCH
    side = size or max(SIZE, network.check_size)
    warn_of_small(network, side)
    images = random_images(batch, network.in_chans, side)
    equivalence.randomize(network, images)
    return name, fusion_check.compare(network, images)


def random_images(batch: int, channels: int, size: int) -> np.ndarray:
    """Return float32 [batch, channels, size, size] of a normal distribution, always the same."""
    import numpy as np

    shape = batch, channels, size, size
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def warn_of_small(network: M.Module, size: int) -> None:
    """Say so where an image is too small for a comparison of all taps of all kernels."""
    if size < network.check_size:
        utils.say_once(
            f"verify.py: warning: at --size {size}, some taps of the kernels of {network.arch} "
            f"meet padding alone and are not compared; give {network.check_size} or more"
        )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    import models
    from models import environment, equivalence

    from tqdm import tqdm

    environment.hide_unused_gpus()
    environment.tune_for_computing()
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
            ("equal" if result.holds else "DIFFERENT")
            + (" in float64" if result.precision == "float64" else ""),
        )
        results.append({"name": name, **result._asdict(), "holds": result.holds})
        if not result.holds:
            failed.append(row)
        if not args.json:
            tqdm.write(row)
    if args.json:
        print(utils.json_text(results))
    elif not failed:
        print(f"all {len(results)} equal: relative error <= {equivalence.TOLERANCE:.0e}")
    if failed:
        out = sys.stderr if args.json else sys.stdout
        print(
            f"\n{len(failed)} of {len(results)} differ by more than {equivalence.TOLERANCE:.0e}, "
            "or have a batch norm left or outputs that are not finite:",
            file=out,
        )
        print("\n".join(failed), file=out)
    return 1 if failed else 0


if __name__ == "__main__":
    utils.run(main)
