#!/usr/bin/env python
"""Convert a checkpoint of another repository into this project's, verified before it is saved.

The layout and the architecture are recognized from the names and shapes of the tensors, all of
which must belong to the network. The file is written only after the equivalence check of verify.py:
the converted network must compute the same before and after fusion. With --export a checkpoint is
converted into another repository's layout instead. Files are read as data: PyTorch is not needed,
and nothing in them is executed.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
from collections import OrderedDict
from dataclasses import replace
from pathlib import Path

import models
from models import environment, equivalence

import numpy as np

import cli
import utils
import weights
from weights import catalog, checkpoint, convert, files

EXAMPLES = """\
  python convert_pretrained_weight.py --origin-dir RepVGG-A0-train.pth --save-dir checkpoints
  python convert_pretrained_weight.py --origin-dir basecls:repvgg_a0 --save-dir a0.pkl \\
      --model-arch RepVGGA0
  python convert_pretrained_weight.py --origin-dir best.pkl --save-dir a0.safetensors --export timm
  python convert_pretrained_weight.py --list
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line; end the process with a sentence for a wrong one."""
    sources = sorted({source.name for source in convert.SOURCES})
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    what = parser.add_argument_group("what to convert")
    what.add_argument(
        "--origin-dir",
        metavar="FILE",
        help="checkpoint to convert: a file (.pkl, .pth, .pth.tar, .safetensors, .npz), an http(s) "
        "URL, or basecls:NAME for a published BaseCls pickle",
    )
    what.add_argument(
        "--model-arch",
        type=cli.arch_name,
        metavar="NAME",
        help="architecture of the checkpoint (default: recognized from its tensors)",
    )
    what.add_argument(
        "--source",
        choices=sources,
        help="layout of the checkpoint: %(choices)s (default: recognized from its tensors)",
        metavar="LAYOUT",
    )
    cli.add_flags(
        what,
        "--stride",
        help="total stride of the network, one of %(choices)s (default: told from its tensors; 32 "
        "where these fit both 32 and 8, which the report then says)",
    )
    what.add_argument("--list", action="store_true", help="list published weights and exit")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--save-dir", metavar="OUT", help="file to write, or folder for a file called ARCH.pkl"
    )
    output.add_argument(
        "--export",
        choices=sources,
        metavar="LAYOUT",
        help="write the layout of another repository, one of %(choices)s, instead of this "
        "project's (a .safetensors file; for basecls, port and megengine a .pkl file)",
    )
    cli.add_flags(output, "--json")
    args = parser.parse_args(argv)
    if not args.list and not (args.origin_dir and args.save_dir):
        parser.error("give the file by --origin-dir and the output by --save-dir, or use --list")
    return args


def read(path: Path, args: argparse.Namespace) -> checkpoint.Checkpoint:
    """Return the checkpoint in a file; raise CheckpointError unless it is of --model-arch."""
    converted = checkpoint.read(path, args.model_arch, args.source, args.stride)
    if args.model_arch not in (None, converted.arch):
        raise checkpoint.CheckpointError(
            f"{path} holds {converted.arch}, but --model-arch says {args.model_arch}"
        )
    return converted


def relative_error_of_fusion(path: Path, args: argparse.Namespace) -> float:
    """Return the relative error of fusing the network in a file, 0 for one that is fused already.

    Raises ConversionError when it is too large, or a weight or an output is not finite.
    """
    converted = read(path, args)
    for key, value in converted.state_dict.items():  # ReLU may hide a NaN
        if not np.isfinite(value).all() or (key.endswith("running_var") and value.min() < 0):
            raise convert.ConversionError(
                f"{path} was not converted: {key} holds numbers that are not finite, or negative "
                "variances; give a checkpoint of a training that did not diverge"
            )
    model = weights.load(replace(converted, note=None))  # the report has it
    del converted  # the file's tensors and both forms of the network are much memory together
    size = model.check_size
    shape = (4 if size <= 64 else 1, 3, size, size)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    check = equivalence.compare(model, images, consume=True)
    if not check.holds:
        raise convert.ConversionError(
            f"{path} was not converted: fusing it moves the logits by "
            f"{check.relative_error:.1e} of the largest, above {equivalence.TOLERANCE:.0e}"
        )
    return check.relative_error


def target_path(save_dir: str, converted: checkpoint.Checkpoint, suffix: str) -> Path:
    """Return the file to write: `save_dir` itself when it has a suffix, else one in it."""
    path = Path(save_dir)
    if path.suffix and not os.path.isdir(path):  # False too for a name too long
        return path
    form = "-deploy" if converted.form == "deploy" else ""
    return path / f"{models.variant_name(converted.arch, converted.options)}{form}{suffix}"


def save_export(converted: checkpoint.Checkpoint, layout: str, save_dir: str) -> Path:
    """Write a checkpoint in another repository's layout, and return the file.

    Raises ConversionError when the tensors, converted back, are not the same to the last bit.
    """
    state_dict = converted.state_dict
    tensors = convert.export(state_dict, converted.arch, layout)
    stride = converted.options.get("stride", 32)
    again = convert.recognize(tensors, converted.path, converted.arch, layout, stride).state_dict
    if any(not np.array_equal(again[key], value) for key, value in state_dict.items()):
        raise convert.ConversionError(f"{layout} cannot hold {converted.arch} exactly")
    if layout in ("basecls", "port", "megengine"):
        target = target_path(save_dir, converted, ".pkl")
        content = OrderedDict(sorted(tensors.items()))
        utils.write_atomically(target, lambda file: pickle.dump(content, file))
    else:
        from safetensors.numpy import save

        target = target_path(save_dir, converted, ".safetensors")
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
    """Convert one file, or list what is published; return the exit status."""
    args = parse_args(argv)
    if args.list:
        show_list(args.json)
        return 0
    path = catalog.locate(args.origin_dir)
    error = relative_error_of_fusion(path, args)
    # Read a second time: with the file's tensors kept through the equivalence check, which has
    # both forms of the network, a large network would take three times the memory of its file.
    converted = read(path, args)
    if args.export:
        target = save_export(converted, args.export, args.save_dir)
    else:
        target = target_path(args.save_dir, converted, ".pkl")
        checkpoint.save(converted, target)
    report = {
        "source": converted.source,
        "mapped": len(converted.state_dict),
        "dropped": converted.dropped,
        "arch": converted.arch,
        "options": converted.options,
        "note": converted.note,
        "form": converted.form,
        "classes": converted.num_classes,
        "colour_order": converted.preprocessing.color,
        "relative_error": error,
        "output": str(target),
        "sha256": files.sha256(target),
    }
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        show(report, args.export)
    return 0


def show(report: dict, export: str | None) -> None:
    """Print the report of a conversion."""
    counters = [key for key in report["dropped"] if key.endswith("num_batches_tracked")]
    others = [key for key in report["dropped"] if key not in counters]
    dropped = ([f"{len(counters)} x num_batches_tracked"] if counters else []) + others
    architecture = ", ".join([report["arch"], *(f"{k}={v}" for k, v in report["options"].items())])
    verified = f"relative error {report['relative_error']:.1e} after fusion"
    if report["form"] == "deploy":
        verified = "fused already; the logits are finite"
    for label, value in (
        ("source", report["source"]),
        ("architecture", f"{architecture}, {report['form']} form, {report['classes']} classes"),
        ("tensors", f"{report['mapped']} mapped; dropped: {', '.join(dropped) or 'none'}"),
        ("colour order", report["colour_order"]),
        ("verified", verified),
        ("layout", export or "this project's"),
        ("output", report["output"]),
        ("sha256", report["sha256"]),
    ):
        print(f"{label + ':':14}{value}")
    if report["note"]:
        print(f"note: {report['note']}")
    if export:
        print(f"note: the network expects {report['colour_order']} images, also in this layout")


if __name__ == "__main__":
    environment.return_freed_memory()
    utils.run(main)
