#!/usr/bin/env python
"""Quantize a trained network to int8, and write it as an ONNX file with a report.

The network is fused and its layers are equalized, which changes no bit of the float network. Then
activations are clipped, weights are rounded and biases are corrected, so that each layer keeps its
mean output. A few images without labels suffice for calibration. With --data, the accuracy is
measured on other images. A network trained by train.py --qat is not calibrated: the file gets the
ranges and weights of its training.

A chart beside the file (.png) shows the signal-to-quantization-noise ratio (SQNR) of every layer.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from models import environment

import numpy as np
import onnx
from tqdm import tqdm

import cli
import utils
from benchmarks import record
from data import datasets, readers
from data.loader import Loader
from data.transforms import Preprocessing
from deployment.int8 import calibration, ptq, qdq, ranges, report, runtime, source
from utils import write_atomically
from weights import preprocessing as said
from weights.files import sha256

EXAMPLES = """\
  python quantize.py --model a0.pkl --calibration imagenet/train
  python quantize.py --model a0.pkl --calibration imagenet/train --data imagenet --out a0-int8.onnx
  python quantize.py --model a0.pkl --calibration imagenet/train --full-range     for VNNI
  python quantize.py --model checkpoints/RepVGGA0-qa/int8/best.pkl      after train.py --qat
  python quantize.py --model RepVGGA0.onnx --calibration photos --images 32 --weights per-tensor
"""
BATCH = 25  # batch size of the evaluation
FEW = 16  # calibration images, below which their ranges are a matter of chance
BASELINE = "W8A8 per-tensor, plain"  # the scheme that the chart compares with


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    cli.add_flags(parser, "--arch")
    cli.add_flags(
        parser,
        "--model",
        required=True,
        help="checkpoint in any layout that convert_pretrained_weight.py reads, or an .onnx file "
        "that export.py wrote",
    )
    cli.add_flags(parser, "--entry")
    cli.add_flags(
        parser,
        "--calibration",
        help="folder of images to calibrate on; optional for a network trained by train.py --qat",
    )
    cli.add_flags(parser, "--images", default=64)
    cli.add_flags(
        parser,
        "--data",
        help="data to measure the accuracy on: a folder with val/CLASS/IMAGE or test/CLASS/IMAGE, "
        "or another form that docs/data.md lists",
    )
    cli.add_flags(parser, "--val-list")
    cli.add_preprocessing_flags(parser)
    parser.add_argument(
        "--weights",
        choices=("per-channel", "per-tensor"),
        default="per-channel",
        help="granularity of the weights' scales in the file; the report compares both",
    )
    parser.add_argument(
        "--full-range",
        action="store_true",
        help="use all of int8's range for the weights, which is more exact but saturates on CPUs "
        "without VNNI instructions unless onnxruntime's session.x64quantprecision is set",
    )
    parser.add_argument(
        "--clip",
        choices=("auto", *ranges.CLIPS),
        default="auto",
        help="method that chooses the activations' ranges: %(choices)s; auto takes the one with "
        "the least noise in the logits",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="file to write (default: NAME-int8.onnx beside the model file)",
    )
    cli.add_flags(parser, "--json")
    record.add_argument(parser)
    args = parser.parse_args(argv)
    per_tensor = args.weights == "per-tensor"
    if args.calibration is None and (per_tensor or args.full_range or args.clip != "auto"):
        parser.error("--weights per-tensor, --full-range and --clip are for a --calibration")
    if per_tensor and args.full_range:
        parser.error("--full-range is for --weights per-channel")
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    target = _target(args)
    if args.calibration is None:
        return write_trained(args, target)
    files = calibration.files(args.calibration, args.images)
    if len(files) < FEW:
        print(
            f"quantize.py: warning: {len(files)} calibration images are few, and the ranges of the "
            f"activations a matter of chance; give {FEW} or more, better 64, by --calibration and "
            "--images",
            file=sys.stderr,
        )
    model, preprocessing, metadata = _read(args)
    test = _test_set(args, metadata)
    if test is not None:
        calibration.assert_disjoint(files, test.images)
    images = calibration.read(files, preprocessing)

    networks, quantized = ptq.schemes(model, images, args.clip)
    if test is None:
        rows = report.compare(networks, [(images, None)])
    else:
        rows = report.compare(networks, _batches(test, preprocessing))

    name = f"W8A8 {args.weights}{', full range' if args.full_range else ''}"
    chosen, int8 = quantized[name], networks[name]
    tensors = qdq.activations(model)
    curves = {
        BASELINE: report.layers(model, networks[BASELINE], tensors, images),
        name: report.layers(chosen.equalized, int8, tensors, images),
    }
    settings = {
        "weights": args.weights,
        "full_range": args.full_range,
        "clip": chosen.clip,
        "calibration_images": len(files),
        "calibration_folder": args.calibration,
        "crop_ratio": preprocessing.crop_ratio,
    }
    int8.metadata_props.add(key="quantization", value=json.dumps(settings))
    _write(int8, target, images)
    chart = target.with_suffix(".png")
    picture = report.chart(curves)
    write_atomically(chart, lambda file: file.write(picture))
    result = {
        "arch": metadata["arch"],
        **settings,
        "clips_sqnr_db": chosen.tried,
        "measured_on": f"{len(test)} images of {args.data}" if test else "the calibration images",
        "networks": [row._asdict() for row in rows],
        "layers_sqnr_db": curves[name],
        "file": str(target),
        "bytes": target.stat().st_size,
        "sha256": sha256(target),
        "chart": str(chart),
    }
    print(json.dumps(result, indent=2) if args.json else _text(result, rows))
    _record(args, result)
    return 0


def write_trained(args: argparse.Namespace, target: Path) -> int:
    """Write the int8 network of a checkpoint of train.py --qat, with the ranges of its training."""
    bounds = source.trained_ranges(args.model, args.arch)
    model, preprocessing, metadata = _read(args)
    if missing := [name for name in qdq.activations(model) if name not in bounds]:
        raise utils.UserError(
            f"{args.model} has no range of {missing[0]}: it was trained by another version of "
            "this project; calibrate it again with --calibration"
        )
    proto = qdq.to_qdq(model, bounds)
    settings = {"weights": "per-channel", "clip": "trained"}
    proto.metadata_props.add(key="quantization", value=json.dumps(settings))
    shape = (1, preprocessing.channels, preprocessing.size, preprocessing.size)
    _write(proto, target, np.zeros(shape, np.float32))
    test, rows = _test_set(args, metadata), []
    if test is not None:
        networks = {"float": model, "W8A8 per-channel, trained": proto}
        rows = report.compare(networks, _batches(test, preprocessing))
    result = {
        "arch": metadata["arch"],
        **settings,
        "networks": [row._asdict() for row in rows],
        "file": str(target),
        "bytes": target.stat().st_size,
        "sha256": sha256(target),
    }
    _record(args, result)
    if args.json:
        print(json.dumps(result, indent=2))
        return 0
    if rows:
        print(f"on {len(test)} images of {args.data}:\n{report.table(rows)}")
    print(f"{result['file']}, {result['bytes'] / 1e6:.1f} MB, with the ranges of its training")
    return 0


def _read(args: argparse.Namespace) -> source.Source:
    """Return the network to quantize, and print what its preprocessing is and why."""
    read = source.read(args.model, args.arch, said.of_flags(args), args.entry)
    if not args.json:
        origins = read.metadata.get("origins", {})
        for line in said.lines(read.preprocessing, read.metadata["classes"], origins):
            print(line)
    return read


def _record(args: argparse.Namespace, result: dict) -> None:
    if args.record:
        about = {key: value for key, value in result.items() if key != "networks"}
        record.write(args.record, result["networks"], about)


def _test_set(args: argparse.Namespace, metadata: dict) -> datasets.Dataset | None:
    if not args.data:
        return None
    test = readers.open_dataset(args.data, "val", labels=args.val_list)
    return datasets.with_class_order(test, metadata["num_classes"], metadata["classes"])


def _target(args: argparse.Namespace) -> Path:
    """Return the file to write."""
    if args.out is None:
        model = Path(args.model)
        beside = model if model.is_file() else Path(model.name)
        return beside.with_name(f"{beside.stem}-int8.onnx")
    target = Path(args.out)
    if target.suffix != ".onnx":
        raise utils.UserError(f"--out {target} does not end in .onnx; give another name")
    return target


def _batches(dataset: datasets.Dataset, preprocessing: Preprocessing) -> Iterator:
    """Yield the batches of an evaluation, with a progress bar."""
    loader = Loader(dataset, preprocessing, BATCH)
    with tqdm(total=len(dataset), desc="test", unit="image", leave=False, disable=None) as bar:
        for images, labels in loader.evaluation():
            yield images, labels
            bar.update(len(labels))


def _write(model: onnx.ModelProto, target: Path, images: np.ndarray) -> None:
    """Write the file, after running it under a temporary name."""
    content = model.SerializeToString()
    onnx.checker.check_model(content, full_check=True)

    def write(file: BinaryIO) -> None:
        file.write(content)
        file.flush()
        session = runtime.session(file.name)
        (logits,) = session.run(None, {session.get_inputs()[0].name: images[:1]})
        if not np.isfinite(logits).all():
            raise utils.UserError(f"{target} was not written: its logits are not finite")

    write_atomically(target, write)


def _text(result: dict, rows: list[report.Row]) -> str:
    written = f"weights {result['weights']}{', full range' if result['full_range'] else ''}"
    tried = ", ".join(f"{clip} {noise:.1f} dB" for clip, noise in result["clips_sqnr_db"].items())
    worst = sorted(result["layers_sqnr_db"].items(), key=lambda item: item[1])[:3]
    lines = [
        ("architecture", result["arch"]),
        ("calibration", f"{result['calibration_images']} images of {result['calibration_folder']}, "
                        f"crop ratio {result['crop_ratio']}"),
        ("clipping", f"{result['clip']}; SQNR of the logits there: {tried}"),
        ("noisiest", ", ".join(f"{name} {noise:.1f} dB" for name, noise in worst)),
        ("measured on", result["measured_on"]),
    ]  # fmt: skip
    head = "\n".join(f"{label + ':':15}{value}" for label, value in lines)
    tail = [
        ("file", f"{result['file']}, {result['bytes'] / 1e6:.1f} MB, {written}"),
        ("layers", result["chart"]),
        ("sha256", result["sha256"]),
    ]
    foot = "\n".join(f"{label + ':':15}{value}" for label, value in tail)
    layers = "\n".join(
        f"{name:40}{noise:7.1f} dB" for name, noise in result["layers_sqnr_db"].items()
    )
    return f"{head}\n\n{report.table(rows)}\n\n{layers}\n\n{foot}"


if __name__ == "__main__":
    environment.hide_unused_gpus()
    environment.return_freed_memory()
    utils.run(main)
