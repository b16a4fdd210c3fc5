"""Quality of an int8 network: noise of each layer, agreement with the float network, accuracy."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import onnx

from data.evaluation import Score

from . import graph, runtime


class Row(NamedTuple):
    """Results of a network on a set of images, compared with the float network."""

    name: str
    sqnr: float | None  # SQNR of the logits in dB; None for the float network itself
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
        batches: pairs of images, float32 [N, 3, H, W], and labels [N] or None.
    """
    sessions = {
        name: runtime.session(m.SerializeToString(), spin=False) for name, m in networks.items()
    }
    scores = {name: Score() for name in networks}
    powers = {name: np.zeros(2) for name in networks}
    agreed = dict.fromkeys(networks, 0)
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
            agreed[name] += int((logits.argmax(1) == expected.argmax(1)).sum())
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
    lines = [f"{'':28}{'SQNR':>9}{'agreement':>11}" + f"{'top-1':>9}{'top-5':>9}" * accuracy]
    for row in rows:
        noise = "-" if row.sqnr is None else f"{row.sqnr:.1f} dB"
        line = f"{row.name:28}{noise:>9}{row.agreement:>9.1f} %"
        lines.append(line + (f"{row.top1:7.2f} %{row.top5:7.2f} %" if accuracy else ""))
    return "\n".join(lines)


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
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=110)
    return content.getvalue()
