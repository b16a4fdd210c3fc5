#!/usr/bin/env python
"""Convert a checkpoint of another repository into this project's, proven before it is saved.

The layout and the architecture are recognized from the names and shapes of the tensors. Every
tensor must find its place; the converted network is fused and compared with itself, as verify.py
does; only then is the file written. --export goes the other way. Files are read as data: PyTorch is
not needed and nothing in them is executed.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path

from models import environment, equivalence

import numpy as np

import cli
import utils
from weights import catalog, checkpoint, convert, files

EXAMPLES = """\
  python convert_pretrained_weight.py --origin-dir RepVGG-A0-train.pth --save-dir checkpoints
  python convert_pretrained_weight.py --origin-dir basecls:repvgg_a0 --save-dir a0.pkl \\
      --model-arch RepVGGA0
  python convert_pretrained_weight.py --origin-dir best.pkl --save-dir a0.safetensors --export timm
  python convert_pretrained_weight.py --list
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    sources = sorted({source.name for source in convert.SOURCES})
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    what = parser.add_argument_group("what to convert")
    what.add_argument(
        "--origin-dir",
        metavar="FILE",
        help="the checkpoint: a file (.pkl, .pth, .pth.tar, .safetensors, .npz), an http(s) URL, "
        "or basecls:NAME for a published BaseCls pickle",
    )
    what.add_argument(
        "--model-arch",
        type=cli.arch_name,
        metavar="NAME",
        help="architecture (default: recognized)",
    )
    what.add_argument(
        "--source",
        choices=sources,
        help="layout of the file: %(choices)s (default: recognized)",
        metavar="LAYOUT",
    )
    what.add_argument("--list", action="store_true", help="show the weights that are published")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--save-dir", metavar="OUT", help="the file to write, or a folder to put ARCH.pkl in"
    )
    output.add_argument(
        "--export",
        choices=sources,
        metavar="LAYOUT",
        help="write this repository's layout instead of ours (.safetensors; basecls, port: .pkl)",
    )
    cli.add_flags(output, "--json")
    args = parser.parse_args(argv)
    if not args.list and not (args.origin_dir and args.save_dir):
        parser.error("give the file by --origin-dir and the output by --save-dir, or use --list")
    return args


def read(path: Path, args: argparse.Namespace) -> tuple[checkpoint.Checkpoint, dict]:
    """The checkpoint in our layout, and what to report of the file it came from."""
    contents = files.read(path)
    if args.source is None and checkpoint.is_ours(contents):
        found = checkpoint.read(path)
        if args.model_arch not in (None, found.arch):
            raise checkpoint.CheckpointError(
                f"{path} holds {found.arch}, but --model-arch says {args.model_arch}"
            )
        return found, {"source": "this project", "mapped": len(found.state_dict), "dropped": []}
    foreign = convert.recognize(contents, path, args.model_arch, args.source)
    report = {
        "source": f"{foreign.source.name} ({foreign.source.title})",
        "mapped": len(foreign.state_dict),
        "dropped": foreign.dropped,
    }
    return checkpoint.of_foreign(foreign, path), report


def prove(path: Path, args: argparse.Namespace) -> float:
    """The relative error of fusing the network in a file (0 for one that is fused already).

    Raises ConversionError when it is too large, or a weight or an output is not finite.
    """
    found, _ = read(path, args)
    for key, value in found.state_dict.items():  # ReLU may hide a NaN
        if not np.isfinite(value).all() or (key.endswith("running_var") and value.min() < 0):
            raise convert.ConversionError(
                f"{path} was not converted: {key} holds numbers that are not finite, or negative "
                "variances; give a checkpoint of a training that did not diverge"
            )
    model = checkpoint.load_model(found)
    del found  # the file's tensors and both forms of the network are much memory together
    images = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)
    proof = equivalence.compare(model, images, consume=True)
    if not proof.holds:
        raise convert.ConversionError(
            f"{path} was not converted: fusing it moves the logits by "
            f"{proof.relative_error:.1e} of the largest, above {equivalence.TOLERANCE:.0e}"
        )
    return proof.relative_error


def target_path(save_dir: str, found: checkpoint.Checkpoint, suffix: str) -> Path:
    """The file to write: `save_dir` itself when it has a suffix, else one in it."""
    path = Path(save_dir)
    if path.suffix and not os.path.isdir(path):  # False too for a name too long
        return path
    return path / f"{found.arch}{'-deploy' if found.form == 'deploy' else ''}{suffix}"


def save_export(found: checkpoint.Checkpoint, layout: str, save_dir: str) -> Path:
    """Write `found` in another repository's layout; read back in memory, it must be the same."""
    tensors = convert.export(found.state_dict, found.arch, layout)
    again = convert.recognize(tensors, found.path, found.arch, layout).state_dict
    if any(not np.array_equal(again[key], value) for key, value in found.state_dict.items()):
        raise convert.ConversionError(f"{layout} cannot hold {found.arch} exactly")
    if layout in ("basecls", "port"):
        target = target_path(save_dir, found, ".pkl")
        content = OrderedDict(sorted(tensors.items()))
        utils.write_atomically(target, lambda file: pickle.dump(content, file))
    else:
        from safetensors.numpy import save

        target = target_path(save_dir, found, ".safetensors")
        content = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
        utils.write_atomically(target, lambda file: file.write(save(content)))
    return target


def show_list(as_json: bool) -> None:
    """Print the catalogue of published weights."""
    if as_json:
        print(json.dumps([entry._asdict() for entry in catalog.PUBLISHED], indent=2))
        return
    print("Weights trained on ImageNet elsewhere. The accuracy is what they report; none of it was")
    print("measured here.\n")
    line = "{:8} {:17} {:16} {:>6} {:>6}  {:43} {}"
    print(
        line.format(
            "source", "their name", "architecture", "top-1", "top-5", "reported by", "where"
        )
    )
    for entry in catalog.PUBLISHED:
        figures = (f"{v:.2f}" if v is not None else "-" for v in (entry.top1, entry.top5))
        print(
            line.format(
                entry.source,
                entry.name,
                entry.arch,
                *figures,
                entry.reported_by or "-",
                entry.where,
            ).rstrip()
        )


def main(argv: list[str] | None = None) -> int:
    """Convert, or list."""
    args = parse_args(argv)
    if args.list:
        show_list(args.json)
        return 0
    path = catalog.locate(args.origin_dir)
    error = prove(path, args)
    found, report = read(path, args)
    if args.export:
        target = save_export(found, args.export, args.save_dir)
    else:
        target = target_path(args.save_dir, found, ".pkl")
        checkpoint.save(found, target)
    report |= {
        "arch": found.arch,
        "options": found.options,
        "form": found.form,
        "classes": found.num_classes,
        "colour_order": found.preprocessing.color,
        "relative_error": error,
        "output": str(target),
        "sha256": files.sha256(target),
    }
    if args.json:
        print(json.dumps(report, indent=2))
        return 0
    counters = [key for key in report["dropped"] if key.endswith("num_batches_tracked")]
    others = [key for key in report["dropped"] if key not in counters]
    dropped = ([f"{len(counters)} x num_batches_tracked"] if counters else []) + others
    architecture = ", ".join([found.arch, *(f"{k}={v}" for k, v in found.options.items())])
    proof = f"relative error {error:.1e} after fusion"
    if found.form == "deploy":
        proof = "fused already; the logits are finite"
    for label, value in (
        ("source", report["source"]),
        ("architecture", f"{architecture}, {found.form} form, {found.num_classes} classes"),
        ("tensors", f"{report['mapped']} mapped; dropped: {', '.join(dropped) or 'none'}"),
        ("colour order", found.preprocessing.color),
        ("verified", proof),
        ("layout", args.export or "this project's"),
        ("output", target),
        ("sha256", report["sha256"]),
    ):
        print(f"{label + ':':14}{value}")
    if args.export:
        print(
            f"note: feed it {found.preprocessing.color} images, whatever {args.export} usually does"
        )
    return 0


if __name__ == "__main__":
    environment.return_freed_memory()
    utils.run(main)
