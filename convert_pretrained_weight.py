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
import os
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path

import models
from models import environment, equivalence

import cli
import utils
import weights
from deployment import float64, fusion_check
from weights import (
    archives,
    catalog,
    channels,
    checkpoint,
    conversion_report,
    export,
    files,
    layouts,
    recognition,
    stated_preprocessing,
)
from weights.state import MOST_CHANNELS

EXAMPLES = """\
  python convert_pretrained_weight.py --origin-dir RepVGG-A0-train.pth --save-dir checkpoints
  python convert_pretrained_weight.py --origin-dir basecls:repvgg_a0 --save-dir a0.pkl \\
      --model-arch RepVGGA0
  python convert_pretrained_weight.py --origin-dir best.pkl --save-dir a0.safetensors --export timm
  python convert_pretrained_weight.py --origin-dir best.pkl --save-dir hub --export hf
  python convert_pretrained_weight.py --origin-dir mine.pkl --save-dir a0.pkl --color rgb
  python convert_pretrained_weight.py --list
"""
HUB = "hf"  # --export: the folder that timm and the Hugging Face hub expect


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line; end the process with a sentence for a wrong one."""
    sources = sorted({source.name for source in layouts.SOURCES})
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    what = parser.add_argument_group("what to convert")
    what.add_argument(
        "--origin-dir",
        metavar="FILE",
        help="checkpoint to convert: a file (PyTorch, safetensors, .npz or a pickle, told by its "
        "content), a folder that holds one, an http(s) URL, or SOURCE:NAME of --list, such as "
        "basecls:repvgg_a0",
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
        help="total stride of the network, one of %(choices)s (default: told from the checkpoint's "
        "tensors; 32 where they fit both 32 and 8, with a note in the report for layouts that are "
        "used for CIFAR)",
    )
    cli.add_flags(what, "--entry")
    what.add_argument(
        "--in-chans",
        type=cli.number(int, 1, MOST_CHANNELS),
        metavar="N",
        help="number of channels of the images, such as 1 for grey ones: the first kernels are "
        "summed over the colours, or repeated for more channels (default: the checkpoint's)",
    )
    cli.add_flags(
        what,
        "--size",
        help="side of the square images that the network is for (default: what the file says or "
        "is known for, else 224)",
    )
    what.add_argument("--list", action="store_true", help="list published weights and exit")
    cli.add_preprocessing_flags(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--save-dir",
        metavar="OUT",
        help="file to write, or folder for a file called ARCH.pkl; with --export hf, a folder",
    )
    output.add_argument(
        "--export",
        choices=[*sources, HUB],
        metavar="LAYOUT",
        help="write the layout of another repository, one of %(choices)s, instead of this "
        "project's (a .safetensors file; for basecls, megengine, own and port a .pkl file; for hf "
        "a folder with config.json, model.safetensors and a model card, for timm and the Hugging "
        "Face hub)",
    )
    cli.add_flags(output, "--json")
    args = parser.parse_args(argv)
    given = ["--" + name.replace("_", "-") for name, value in vars(args).items()
             if name not in ("list", "json") and value != parser.get_default(name)]  # fmt: skip
    if args.list and given:
        parser.error(f"--list goes with --json alone; leave {', '.join(given)} out")
    if not args.list and not (args.origin_dir and args.save_dir):
        parser.error("give the file by --origin-dir and the output by --save-dir, or use --list")
    return args


def read(path: Path, args: argparse.Namespace) -> tuple[checkpoint.Checkpoint, str | None]:
    """Return the checkpoint in a file, and a sentence if --in-chans has converted its kernels.

    Raises CheckpointError unless it is of --model-arch.
    """
    stated = stated_preprocessing.of_flags(args, args.size)
    converted = checkpoint.read(
        path, args.model_arch, args.source, args.entry, stated, stride=args.stride
    )
    if args.model_arch not in (None, converted.arch):
        raise checkpoint.CheckpointError(
            f"{path} holds {converted.arch}, but --model-arch says {args.model_arch}"
        )
    if args.in_chans is None:
        return converted, None
    return channels.with_input_channels(converted, args.in_chans)


def check_fusion(path: Path, args: argparse.Namespace) -> equivalence.Equivalence:
    """Compare the network in a file before and after fusion, at its own size.

    Raises ConversionError when they differ, and CheckpointError when a weight is not finite; and,
    before any work, what `target_path` raises, or UserError where nothing can be written.
    """
    converted, _ = read(path, args)
    utils.assert_writable(target_path(args.save_dir, args.export, path, converted))
    # the report has what is assumed
    model = weights.load(replace(converted, note=None), classifier=False)
    size, fused_here = converted.preprocessing.size, converted.form == "train"
    del converted  # the file's tensors and both forms of the network are much memory together
    images = equivalence.random_images(model, size)
    check = equivalence.compare(model, images, consume=True)
    del model
    if not check.holds and fused_here:
        again, _ = read(path, args)
        model = weights.load(replace(again, note=None), classifier=False)
        del again
        check = float64.confirmed(check, model, images[:1])
    if not check.holds:
        raise recognition.ConversionError(
            f"nothing was converted: {fusion_check.refusal(path, check)}"
        )
    return check


def target_path(
    save_dir: str, layout: str | None, source: Path, converted: checkpoint.Checkpoint
) -> Path:
    """Return the file to write: `save_dir` itself when it has the layout's suffix, else one in it.

    Raises ConversionError for a name with the suffix of another kind of weights, and for a network
    that the layout for the hub cannot hold; UserError where the file would replace `source`, which
    may hold more than its weights.
    """
    path = Path(save_dir)
    if layout == HUB:
        export.assert_fits_hub(converted)
        path = path / "model.safetensors"
        utils.assert_other_file(source, path, "--save-dir")
        return path
    suffix = ".pkl" if layout is None or layout in export.PICKLED else ".safetensors"
    ending = path.suffix.lower()
    is_folder = save_dir.endswith(os.sep) or os.path.isdir(path)  # False for a name too long
    is_file = ending == suffix and not is_folder
    if ending in (*archives.SUFFIXES, ".onnx", ".mge") and not is_file and not is_folder:
        raise recognition.ConversionError(
            f"--save-dir {save_dir} is written as {suffix}; give a name with this suffix, or a "
            "folder"
        )
    if not is_file:
        form = "-deploy" if converted.form == "deploy" else ""
        path = path / f"{models.variant_name(converted.arch, converted.options)}{form}{suffix}"
    utils.assert_other_file(source, path, "--save-dir")
    return path


def save_export(converted: checkpoint.Checkpoint, layout: str, save_dir: str, source: Path) -> Path:
    """Write a checkpoint in another repository's layout, and return the file with the weights.

    Raises ConversionError when that layout cannot hold it, and UserError where the file would
    replace `source`.
    """
    target = target_path(save_dir, layout, source, converted)
    if layout == HUB:
        export.save_for_hub(converted, save_dir)
    else:
        export.save(converted, layout, target)
    return target


def _version(path: str | os.PathLike) -> tuple[int, int] | None:
    """Return what changes when a file is replaced or written to; None where there is none."""
    with suppress(OSError):
        state = os.stat(path)
        return state.st_ino, state.st_mtime_ns
    return None


def main(argv: list[str] | None = None) -> int:
    """Convert one file, or list what is published; return the exit status."""
    args = parse_args(argv)
    if args.list:
        rows = [{**entry._asdict(), "licence": entry.licence} for entry in catalog.PUBLISHED]
        print(utils.json_text(rows) if args.json else conversion_report.published())
        return 0
    environment.hide_unused_gpus()
    path = catalog.locate(args.origin_dir)
    before = _version(path)
    check = check_fusion(path, args)
    # Read a second time: with the file's tensors kept through the equivalence check, which has
    # both forms of the network, a large network would take three times the memory of its file.
    converted, input_channels = read(path, args)
    if _version(path) != before:
        raise utils.UserError(f"{path} has changed while it was being checked; convert it again")
    if args.export:
        target = save_export(converted, args.export, args.save_dir, path)
    else:
        target = target_path(args.save_dir, None, path, converted)
        checkpoint.save(converted, target)
    report = {
        "source": converted.source,
        "mapped": len(converted.state_dict),
        "dropped": converted.dropped,
        "arch": converted.arch,
        "options": converted.options,
        "input": input_channels,
        "note": converted.note,
        "export_notes": export.notes(converted, args.export) if args.export else [],
        "form": converted.form,
        "classes": converted.num_classes,
        "colour_order": converted.preprocessing.color,
        "preprocessing": asdict(converted.preprocessing),
        "class_names": converted.classes,
        "origins": converted.origins,
        "relative_error": check.relative_error,
        "precision": check.precision,
        "entry": converted.entry,
        "other_entries": converted.other_entries,
        "layout": args.export,
        "output": str(target),
        "sha256": files.sha256(target),
    }
    print(utils.json_text(report) if args.json else conversion_report.text(report))
    return 0


if __name__ == "__main__":
    environment.return_freed_memory()
    utils.run(main)
