"""Accuracy and speed of networks in int8: this project's quantization against plain ones."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import models

import numpy as np
import onnx

from data import datasets, readers
from data.loader import Loader
from data.transforms import Preprocessing
from deployment.int8 import calibration, float_network, ptq, report
from deployment.int8.dialects import DIALECTS, Scheme
from utils import UserError
from weights import stated_preprocessing

from .inference import latency
from .inference.turns import Settings

BATCH = 25  # of the evaluation
RUNTIMES = {"onnxruntime": "onnxruntime", "openvino": "openvino"}  # of the speeds -> the package
TIMED = ("float", "ours")  # other int8 files consist of the same operators


def measure(args: argparse.Namespace, after: Callable[[], object] = lambda: None) -> list[dict]:
    """Return the rows of all networks of --model, by the arguments of `benchmark.py int8`.

    A row has the architecture, the scheme, SQNR of the logits, percentage of images with the float
    network's class, top-1 and top-5 on --data, and images/s on one thread under each of `RUNTIMES`;
    what was not measured is None. `after` is called after each network.
    """
    networks = [
        float_network.read(path, None, stated_preprocessing.of_flags(args)) for path in args.model
    ]
    trained = _trained(args, {_kind(net.metadata) for net in networks})
    rows = []
    for net in networks:
        rows += _rows(net, trained.pop(_kind(net.metadata), {}), args)
        after()
    return rows


def _rows(
    net: float_network.FloatNetwork, trained: dict[str, onnx.ModelProto], args: argparse.Namespace
) -> list[dict]:
    model, preprocessing, metadata = net
    num_classes, classes = metadata["num_classes"], metadata["classes"]
    test = readers.open_validation(args.data, num_classes, classes, args.val_list)
    photos = calibration.files(args.calibration, args.images)
    calibration.assert_disjoint(photos, test.images)
    images = calibration.read(photos, preprocessing)
    networks = {**schemes(model, images, args.target), **trained}
    speeds = _speeds({name: networks[name] for name in TIMED}, preprocessing.size, args)
    return [
        {
            "arch": _name(metadata),
            "scheme": row.name,
            "sqnr": None if row.name in trained else row.sqnr,  # it has weights of its own
            "agreement": row.agreement,
            "top1": row.top1,
            "top5": row.top5,
            **{runtime: speeds.get((row.name, runtime)) for runtime in RUNTIMES},
            "calibration_images": len(images),
            "test_images": len(test),
        }
        for row in report.compare(networks, _batches(test, preprocessing))
    ]


def schemes(
    model: onnx.ModelProto, images: np.ndarray, targets: Iterable[str]
) -> dict[str, onnx.ModelProto]:
    """Return the float network and its int8 networks, by the names of the table's rows."""
    networks = {"float": model}
    for per_channel, name in ((False, "per tensor, plain"), (True, "per channel, plain")):
        networks[name] = ptq.plain(model, images, Scheme(per_channel, limited=False))
    ours = ptq.quantize(model, images)
    networks["ours"] = ours.to_qdq()
    full = replace(ours.scheme, limited=False)
    networks["ours, full range"] = ptq.quantize(model, images, full, ours.clip).to_qdq()
    for target in targets:
        dialect = DIALECTS[target]  # as quantize.py --target writes it
        scheme = Scheme(limited=dialect.saturates, dialect=dialect)
        networks[f"ours, {target}"] = ptq.quantize(model, images, scheme).to_qdq()
    return networks


def _trained(
    args: argparse.Namespace, kinds: set[tuple]
) -> dict[tuple, dict[str, onnx.ModelProto]]:
    """Return the int8 network of each checkpoint of --qat, by what `_kind` returns.

    Raises UserError when two are of one kind, or one is of none of `kinds`, those of --model.
    """
    trained: dict[tuple, dict[str, onnx.ModelProto]] = {}
    for path in args.qat:
        bounds = float_network.trained_ranges(path, None)
        model, _, metadata = float_network.read(path, None, stated_preprocessing.of_flags(args))
        kind = _kind(metadata)
        if kind not in kinds or kind in trained:
            which = "another --qat file is" if kind in trained else "no --model is"
            raise UserError(
                f"--qat {path} is of {_name(metadata)} for {metadata['num_classes']} classes, and "
                f"{which}; give one of each for the same classes"
            )
        int8 = float_network.with_trained_ranges(path, model, bounds, Scheme())
        trained[kind] = {"trained by --qat": int8}
    return trained


def _kind(metadata: Mapping[str, Any]) -> tuple:
    """Return what a network and the one that --qat has made of it have in common."""
    return _name(metadata), metadata["num_classes"], tuple(metadata["classes"] or ())


def _name(metadata: Mapping[str, Any]) -> str:
    return models.variant_name(metadata["arch"], metadata.get("options") or {})


def _batches(test: datasets.Dataset, preprocessing: Preprocessing) -> Iterator:
    return Loader(test, preprocessing, BATCH).evaluation()


def _speeds(
    networks: dict[str, onnx.ModelProto], size: int, args: argparse.Namespace
) -> dict[tuple[str, str], float]:
    """Return (name, runtime) -> images/s, of single images on one thread, measured in turns."""
    installed = [name for name, package in RUNTIMES.items() if find_spec(package)]
    settings = Settings(args.rounds, args.seconds)
    times = latency.of_files(networks, size, installed, settings)
    return {key: 1e3 / milliseconds for key, milliseconds in times.items()}
