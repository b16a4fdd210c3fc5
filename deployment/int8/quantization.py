"""The work of quantize.py: from a model file to an int8 ONNX file, its chart and its report."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import onnx
from tqdm import tqdm

import utils
from data import datasets, readers
from data.decoding import ImageFile
from data.loader import Loader
from data.transforms import Preprocessing
from deployment import onnx_runtime
from utils import write_atomically
from weights import stated_preprocessing
from weights.files import sha256

from . import calibration, dialects, float_network, floor, graph, ptq, qdq, report
from .dialects import DIALECTS, Scheme

BATCH = 25  # batch size of the evaluation
IMAGES = 64  # calibration images
BASELINE = "W8A8 per-tensor, plain"  # the scheme that the chart compares with

# networks by name and the side of their images -> (name, runtime) -> milliseconds an image
TimeFiles = Callable[[Mapping[str, onnx.ModelProto], int], Mapping[tuple[str, str], float]]


class Outcome(NamedTuple):
    """What was written and measured: for `--json` and records, and as plain text."""

    result: dict[str, Any]
    text: str


def run(args: argparse.Namespace, time_files: TimeFiles) -> Outcome | None:
    """Quantize the network of --model and write the files; None where a floor cannot be held.

    Args:
        args: parsed arguments of quantize.py.
        time_files: measures the latency of networks, for the cost of layers in float.
    """
    target = _target(args)
    if args.calibration is None:
        return write_trained(args, target)
    return write_calibrated(args, target, time_files)


def write_calibrated(
    args: argparse.Namespace, target: Path, time_files: TimeFiles
) -> Outcome | None:
    """Quantize a float network with calibration images; write its file and its chart."""
    photos = calibration.files(args.calibration, args.images or IMAGES)
    chart = target.with_suffix(".png")
    _refuse_targets((target, chart), photos)
    utils.assert_writable(target)  # now, as the search for a floor may take hours
    model, preprocessing, metadata = _read(args)
    test = _test_set(args, metadata)
    if test is not None:
        calibration.assert_disjoint(photos, test.images)
    images = calibration.read(photos, preprocessing)

    def batches() -> Iterable:
        return [(images, None)] if test is None else _batches(test, preprocessing)

    dialect = DIALECTS[args.target]
    networks, quantized = ptq.schemes(model, images, args.clip, dialect)
    is_limited = dialect.saturates and not args.full_range
    name = ptq.title(Scheme(args.weights == "per-channel", is_limited, dialect))
    chosen, int8 = quantized[name], networks[name]
    rows = report.compare(networks, batches())
    held: dict[str, dict] = {}
    if args.max_drop is not None or args.min_sqnr is not None:
        top1 = None if args.max_drop is None else rows[0].top1
        outcome = hold_floor(args, chosen, images, top1, batches)
        if not outcome.holds:
            return None
        kept = qdq.float_weights(model, outcome.quantized.scheme)
        held["floor"] = {
            "in_float": [name for name in outcome.sensitivity if name in kept],
            "chosen": outcome.in_float,
            "sensitivity_db": outcome.sensitivity,
            "reached": outcome.quality,
            "reached_unit": "dB" if top1 is None else "points of top-1 gained over float",
            "measurements": outcome.measurements,
        }
        if outcome.in_float:
            chosen, mixed = outcome.quantized, outcome.quantized.to_qdq()
            files = {"float": model, "int8": int8, "mixed": mixed}
            times = time_files(files, preprocessing.size)
            held["floor"]["latency_ms"] = {kind: ms for (kind, _), ms in times.items()}
            int8, name = mixed, f"{name}, {len(kept)} in float"
            rows += report.compare({"float": model, name: int8}, batches())[1:]
    tensors = [*chosen.bounds]
    curves = {
        BASELINE: report.layers(model, networks[BASELINE], tensors, images),
        name: report.layers(chosen.equalized, int8, tensors, images),
    }
    settings = {
        "weights": args.weights,
        "full_range": args.full_range,
        "clip": chosen.clip,
        "calibration_images": len(photos),
        "calibration_folder": args.calibration,
        "crop_ratio": preprocessing.crop_ratio,
        **_target_setting(args),
    }
    # files are published, and paths are of one machine
    noted: dict = {**settings, "calibration_folder": Path(args.calibration).resolve().name}
    if chosen.scheme.in_float:
        noted["in_float"] = sorted(qdq.float_weights(model, chosen.scheme))
    int8.metadata_props.add(key="quantization", value=json.dumps(noted))
    _write(int8, target, images, dialect)
    picture = report.chart(curves)
    write_atomically(chart, lambda file: file.write(picture))
    result = {
        "arch": metadata["arch"],
        **settings,
        **held,
        "clips_sqnr_db": chosen.tried,
        "measured_on": f"{len(test)} images of {args.data}" if test else "the calibration images",
        "networks": [row._asdict() for row in rows],
        "layers_sqnr_db": curves[name],
        "file": str(target),
        "bytes": target.stat().st_size,
        "sha256": sha256(target),
        "chart": str(chart),
    }
    return Outcome(result, report.text(result, rows))


def hold_floor(
    args: argparse.Namespace,
    quantized: ptq.Quantized,
    images: np.ndarray,
    top1: float | None,
    batches: Callable[[], Iterable],
) -> floor.Outcome:
    """Find the fewest layers to keep in float; print a sentence where the floor cannot be held.

    `top1` is the float network's, for --max-drop. The quality is minus the drop, or the SQNR.
    """
    expected = graph.logits(quantized.equalized, images)

    def measure(int8: onnx.ModelProto) -> float:
        if top1 is None:
            return graph.sqnr(expected, graph.logits(int8, images))
        (row,) = report.compare({"int8": int8}, batches())
        assert row.top1 is not None  # --max-drop needs labels
        return row.top1 - top1

    least = args.min_sqnr if top1 is None else -args.max_drop
    outcome = floor.hold(quantized, images, measure, least)
    if not outcome.holds:
        reached = (
            f"the SQNR is {outcome.quality:.1f} dB, below --min-sqnr {args.min_sqnr:g}"
            if top1 is None
            else f"top-1 drops by {-outcome.quality:.2f} points, more than --max-drop "
            f"{args.max_drop:g}"
        )
        print(
            f"quantize.py: no file was written: even with {len(outcome.in_float)} layers in float "
            f"and one in int8, {reached}; fine-tune the network by train.py --qat, or relax that "
            "limit",
            file=sys.stderr,
        )
    return outcome


def write_trained(args: argparse.Namespace, target: Path) -> Outcome:
    """Write the int8 network of a checkpoint of train.py --qat, with the ranges of its training."""
    utils.assert_writable(target)  # now, before anything is measured
    bounds = float_network.trained_ranges(args.model, args.arch)
    model, preprocessing, metadata = _read(args)
    test = _test_set(args, metadata)
    scheme = Scheme(dialect=DIALECTS[args.target])
    proto = float_network.with_trained_ranges(args.model, model, bounds, scheme)
    settings = {"weights": "per-channel", "clip": "trained", **_target_setting(args)}
    proto.metadata_props.add(key="quantization", value=json.dumps(settings))
    rows = []
    if test is not None:
        networks = {"float": model, "W8A8 per-channel, trained": proto}
        rows = report.compare(networks, _batches(test, preprocessing))
    shape = (1, preprocessing.channels, preprocessing.size, preprocessing.size)
    _write(proto, target, np.zeros(shape, np.float32), scheme.dialect)
    result = {
        "arch": metadata["arch"],
        **settings,
        "networks": [row._asdict() for row in rows],
        "file": str(target),
        "bytes": target.stat().st_size,
        "sha256": sha256(target),
    }
    lines = [f"on {len(test)} images of {args.data}:", report.table(rows)] if test else []
    size = f"{result['bytes'] / 1e6:.1f} MB"
    return Outcome(
        result, "\n".join([*lines, f"{target}, {size}, with the ranges of its training"])
    )


def _read(args: argparse.Namespace) -> float_network.FloatNetwork:
    """Return the network to quantize, and print what its preprocessing is and why."""
    read = float_network.read(
        args.model, args.arch, stated_preprocessing.of_flags(args, args.size), args.entry
    )
    dialect = DIALECTS[args.target]
    opset = next(o.version for o in read.model.opset_import if o.domain in ("", "ai.onnx"))
    if opset not in dialect.opsets:
        raise utils.UserError(
            f"{args.model} has ONNX opset {opset}, but {dialect.runtime} reads "
            f"{dialect.opsets[0]} to {dialect.opsets[-1]}; export it again with --opset 17"
        )
    if not args.json:
        origins = read.metadata.get("origins", {})
        for line in stated_preprocessing.lines(
            read.preprocessing, read.metadata["classes"], origins
        ):
            print(line)
    return read


def _refuse_targets(targets: Iterable[Path], photos: Iterable[ImageFile]) -> None:
    """Raise UserError where a file to write is a folder or one of the calibration images."""
    for file in targets:
        if file.is_dir():
            raise utils.UserError(
                f"{file}, which is to be written, is a folder; give another --out"
            )
        for photo in photos:
            utils.assert_other_file(photo, file, "--out")


def _test_set(args: argparse.Namespace, metadata: dict) -> datasets.Dataset | None:
    if not args.data:
        return None
    return readers.open_validation(
        args.data, metadata["num_classes"], metadata["classes"], args.val_list
    )


def _target(args: argparse.Namespace) -> Path:
    """Return the file to write."""
    if args.out is None:
        usual = DIALECTS[args.target] == DIALECTS["onnxruntime"]
        ending = "-int8.onnx" if usual else f"-int8-{args.target}.onnx"
        model = Path(args.model)
        if model.is_dir():
            return Path(f"{model.resolve().name or 'model'}{ending}")
        beside = model if model.is_file() else Path(model.name)
        return beside.with_name(f"{beside.stem}{ending}")
    target = Path(args.out)
    if target.suffix != ".onnx":
        raise utils.UserError(f"--out {target} does not end in .onnx; give another name")
    utils.assert_other_file(args.model, target, "--out")
    return target


def _batches(dataset: datasets.Dataset, preprocessing: Preprocessing) -> Iterator:
    """Yield the batches of an evaluation, with a progress bar."""
    loader = Loader(dataset, preprocessing, BATCH)
    with tqdm(total=len(dataset), desc="test", unit="image", leave=False, disable=None) as bar:
        for images, labels in loader.evaluation():
            yield images, labels
            bar.update(len(labels))


def _target_setting(args: argparse.Namespace) -> dict[str, str]:
    """Return what a file says of its target; older files, which say nothing, are onnxruntime's."""
    return {} if args.target == "onnxruntime" else {"target": args.target}


def _write(
    model: onnx.ModelProto, target: Path, images: np.ndarray, dialect: dialects.Dialect
) -> None:
    """Write the file, after running it under a temporary name."""
    if dialect.batch is not None:
        model = graph.for_batch(model, dialect.batch)
    content = model.SerializeToString()
    onnx.checker.check_model(content, full_check=True)

    def write(file: BinaryIO) -> None:
        file.write(content)
        file.flush()
        session = onnx_runtime.session(file.name)
        (logits,) = session.run(None, {session.get_inputs()[0].name: images[:1]})
        if not np.isfinite(logits).all():
            raise utils.UserError(f"{target} was not written: its logits are not finite")

    write_atomically(target, write)
