"""What export.py does: read a network, fuse it, and write it as one file or as a board's kit."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import models

from utils import UserError, assert_other_file
from weights import stated_preprocessing
from weights.files import sha256

from . import export_report, features, input_format, model_to_deploy
from .boards import command
from .export_flags import SUFFIXES


class Outcome(NamedTuple):
    """What was written: for `--json`, and as plain text."""

    result: dict[str, Any]
    text: str


def run(args: argparse.Namespace) -> Outcome:
    """Export the network that the parsed arguments of export.py name.

    Raises UserError where that network, or a file as they ask for, is not possible; ExportError
    where the file would not compute what the network does. Nothing is written then.
    """
    if args.features and args.input_name in features.NAMES:
        raise UserError(
            f"--input-name {args.input_name} is the name of an output; give another one"
        )
    least_side = min(args.size) if isinstance(args.size, tuple) else None
    stated = stated_preprocessing.of_flags(args, least_side)
    model, preprocessing, metadata = model_to_deploy.load(
        args.model, args.arch, args.keep_branches, args.entry, stated, classifier=not args.features
    )
    if not args.json:
        origins = metadata.get("origins", {})
        for line in stated_preprocessing.lines(preprocessing, metadata["classes"], origins):
            print(line)
    free_size = args.size == "dynamic"
    size = (preprocessing.size,) * 2 if free_size or not args.size else args.size
    if args.kit:
        preprocessing = replace(preprocessing, size=size[0])
        return Outcome(*command.write_kit(args, model, preprocessing, metadata))
    target = _target(args, models.variant_name(model.arch, model.options))
    file_input = preprocessing
    if args.input_color:
        file_input = input_format.in_color_order(file_input, args.input_color)
    if args.fold_normalization:
        file_input = input_format.raw_pixels(file_input)
    if args.features:
        metadata = {**metadata, "features": list(model.num_features)}
    common = {
        "file_input": file_input,
        "size": size,
        "input_name": args.input_name,
        "output_name": args.output_name,
        "metadata": metadata,
        "features": args.features,
        "free_size": free_size,
    }
    if args.format == "onnx":
        from .onnx_export import export_onnx

        details = {"opset": args.opset or 17, "batch": args.batch or "batch", "half": args.half}
        facts = export_onnx(model, target, preprocessing, **common, **details)._asdict()
    else:
        from .mge_export import export_mge

        details = {"layout": args.layout or "nchw"}
        facts = export_mge(model, target, preprocessing, **common, **details)._asdict()
    batch = details.get("batch", "batch")
    sides = ("height", "width") if free_size else size
    outputs: dict[str, list] = {"output": [args.output_name, [batch, model.num_classes]]}
    if args.features:
        outputs = {"outputs": features.shapes(model, batch, sides)}
    result = {
        **metadata,
        "format": args.format,
        "takes": input_format.describe(file_input, size),
        "input": [args.input_name, [batch, preprocessing.channels, *sides]],
        **outputs,
        **details,
        "network_parameters": models.profile(model, 32).parameters,
        **facts,
        "file": str(target),
        "bytes": target.stat().st_size,
        "sha256": sha256(target),
    }
    return Outcome(result, export_report.text(result))


def _target(args: argparse.Namespace, name: str) -> Path:
    """Return the file to write, called `name` unless the arguments or the checkpoint name it."""
    suffix = SUFFIXES[args.format]
    kinds = {"-train": args.keep_branches, "-features": args.features, "-half": args.half}
    ending = "".join(kind for kind, is_asked in kinds.items() if is_asked) + suffix
    if args.out is None:
        is_file = args.model is not None and os.path.isfile(args.model)
        beside = Path(args.model).with_suffix("") if is_file else Path(name)
        path = beside.with_name(beside.name + ending)
    elif os.path.isdir(args.out) or not Path(args.out).suffix:
        path = Path(args.out, name + ending)
    else:
        path = Path(args.out)
    if path.suffix != suffix:
        raise UserError(f"--out {path} does not end in {suffix}; give another name or --format")
    assert_other_file(args.model, path, "--out")
    return path
