"""Quality of an int8 network: noise of each layer, agreement with the float network, accuracy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from models.equivalence import agreement

import numpy as np
import onnx

from data.evaluation import Score
from data.figures import as_png
from deployment import onnx_runtime

from . import graph


class Row(NamedTuple):
    """Results of a network on a set of images, compared with the float network."""

    name: str
    sqnr: (
        float | None
    )  # SQNR of the logits in dB; None for the same logits, as of the float network
    agreement: float  # percentage of the images with the float network's best class
    top1: float | None  # percentages, where the labels are known
    top5: float | None


def compare(
    networks: Mapping[str, onnx.ModelProto],
    batches: Iterable[tuple[np.ndarray, np.ndarray | None]],
) -> list[Row]:
    """Run all networks on all batches and return a row for each.

    Args:
        networks: name -> network; the first one is the float network.
        batches: pairs of images, float32 [N, C, H, W], and labels [N] or None.
    """
    sessions = {
        name: onnx_runtime.session(m.SerializeToString(), spin=False)
        for name, m in networks.items()
    }
    scores = {name: Score() for name in networks}
    powers = {name: np.zeros(2) for name in networks}
    agreed = dict.fromkeys(networks, 0.0)
    total = 0
    for images, labels in batches:
        if not len(images):
            continue
        total += len(images)
        expected = None
        for name, session in sessions.items():
            (logits,) = session.run(None, {session.get_inputs()[0].name: images})
            expected = logits if expected is None else expected
            powers[name] += graph.powers(expected, logits)
            agreed[name] += agreement(expected, logits) * len(images)
            if labels is not None:
                scores[name].add(logits, labels, 0.0)
    return [
        Row(
            name,
            graph.decibels(*powers[name]) if powers[name][1] else None,
            100 * agreed[name] / max(1, total),
            *((score.top1, score.top5) if score.total else (None, None)),
        )
        for name, score in scores.items()
    ]


def layers(
    model: onnx.ModelProto, int8: onnx.ModelProto, names: Sequence[str], images: np.ndarray
) -> dict[str, float]:
    """Return quantized tensor -> its SQNR in dB against the same tensor of the float network.

    `int8` must be made of `model`, or of a network with the same scales of its channels.
    """
    total = {name: np.zeros(2) for name in names}
    pairs = zip(
        graph.run(model, images, names, "layers"),
        graph.run(int8, images, [f"{name}.dequantized" for name in names]),
        strict=True,
    )
    for expected, actual in pairs:
        for name, x, y in zip(names, expected, actual, strict=True):
            total[name] += graph.powers(x, y)
    return {name: graph.decibels(*both) for name, both in total.items()}


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a plain-text table."""
    accuracy = rows[0].top1 is not None
    width = max(28, *(len(row.name) + 1 for row in rows))
    lines = [f"{'':{width}}{'SQNR':>9}{'agreement':>11}" + f"{'top-1':>9}{'top-5':>9}" * accuracy]
    for row in rows:
        noise = "-" if row.sqnr is None else f"{row.sqnr:.1f} dB"
        line = f"{row.name:{width}}{noise:>9}{row.agreement:>9.1f} %"
        lines.append(line + (f"{row.top1:7.2f} %{row.top5:7.2f} %" if accuracy else ""))
    return "\n".join(lines)


def text(result: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the report of quantize.py as plain text; `result` is what --json prints."""
    written = f"weights {result['weights']}{', full range' if result['full_range'] else ''}"
    tried = ", ".join(f"{clip} {noise:.1f} dB" for clip, noise in result["clips_sqnr_db"].items())
    worst = sorted(result["layers_sqnr_db"].items(), key=lambda item: item[1])[:3]
    lines = [
        ("architecture", result["arch"]),
        ("calibration", f"{result['calibration_images']} images of {result['calibration_folder']}, "
                        f"crop ratio {result['crop_ratio']}"),
        ("clipping", f"{result['clip']}; SQNR of the logits there: {tried}"),
        ("noisiest", ", ".join(f"{name} {noise:.1f} dB" for name, noise in worst)),
        ("measured on", f"{result['measured_on']}, under onnxruntime"),
        *(_floor(result["floor"]) if "floor" in result else []),
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
    return f"{head}\n\n{table(rows)}\n\n{layers}\n\n{foot}"


def _floor(held: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return lines about the layers that stay in float, and about their cost in time."""
    if not held["in_float"]:
        return [("in float", "no layer; int8 holds the floor")]
    alone = held["sensitivity_db"]
    names = ", ".join(f"{name} {alone[name]:.1f} dB" for name in held["in_float"])
    if others := [name for name in held["in_float"] if name not in held["chosen"]]:
        names += (
            f"; {', '.join(others)} because the runtime computes a convolution in int8 only if its "
            "output is int8 too"
        )
    times = held["latency_ms"]
    return [
        ("in float", f"{len(held['in_float'])} layers of {len(alone)}, with the SQNR of the logits "
                     f"when each alone is int8: {names}"),
        ("cost", f"{times['mixed']:.2f} ms an image on one thread of onnxruntime, all in int8 "
                 f"{times['int8']:.2f} ms, all in float {times['float']:.2f} ms"),
    ]  # fmt: skip


def chart(curves: Mapping[str, Mapping[str, float]]) -> bytes:
    """Draw the SQNR of each quantized tensor in order, with a line per network, as a PNG."""
    from matplotlib.figure import Figure  # the object interface draws without a display

    names = list(next(iter(curves.values())))
    figure = Figure(figsize=(max(6, 0.22 * len(names)), 4.5), layout="constrained")
    axes = figure.subplots()
    for label, curve in curves.items():
        axes.plot(range(len(names)), [curve[name] for name in names], marker=".", label=label)
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
    axes.set(ylabel="SQNR, dB", title="signal over quantization noise")
    axes.grid(alpha=0.3)
    axes.legend()
    return as_png(figure)
