"""Two pictures of many networks: accuracy against latency, and train form against deploy form."""

from __future__ import annotations

import re
from typing import Any

from data.figures import as_png
from utils import UserError
from weights import catalog

from .report import Rows

DEPLOYED = "ONNX, onnxruntime"  # the variant whose latency stands for the deployed network
FORMS = ("train form, MegEngine", "deploy form, MegEngine")


def scatter(rows: Rows) -> bytes:
    """Draw top-1 accuracy over latency, a point for each network, as a PNG.

    The latency is that of the deploy form as an ONNX file under onnxruntime, at the smallest batch
    size and number of threads in `rows`. The accuracy is not measured: it is what the authors of
    the published weights report (`reported_accuracy`), and networks without one are left out.
    Raises UserError when no point is left.
    """
    points = []
    for row in _smallest(rows):
        accuracy = reported_accuracy(row["arch"])
        if row["variant"] == DEPLOYED and accuracy is not None:
            points.append((*_family_and_variant(row["arch"]), row["latency_ms"], *accuracy))
    if not points:
        raise UserError(
            f"--scatter needs the variant {DEPLOYED!r} of a network with published weights; "
            "convert_pretrained_weight.py --list shows their names"
        )
    figure = _figure(8, 6)
    axes = figure.subplots()
    for family in dict.fromkeys(point[0] for point in points):
        _, names, latencies, accuracies, sizes = zip(
            *(point for point in points if point[0] == family), strict=True
        )
        axes.scatter(latencies, accuracies, label=family, s=24)
        for name, *position, size in zip(names, latencies, accuracies, sizes, strict=True):
            label = f"{name} ({size})" if size else name
            axes.annotate(label, position, (4, 3), textcoords="offset points", fontsize="x-small")
    axes.set_xscale("log")
    axes.set_xlabel(f"latency in ms, {_point(_smallest(rows)[0])}, onnxruntime, measured here")
    axes.set_ylabel("ImageNet top-1 in %, as reported by the authors of the weights")
    axes.set_title("Accuracy (reported, not measured here) and latency of deployed networks")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    return as_png(figure)


def forms(rows: Rows) -> bytes:
    """Draw the latencies of train form and deploy form, two bars for each network, as a PNG.

    Both run under MegEngine, at the smallest batch size and number of threads in `rows`. Raises
    UserError when no network was measured in both forms.
    """
    latencies: dict[str, dict[str, float]] = {}
    for row in _smallest(rows):
        if row["variant"] in FORMS:
            latencies.setdefault(row["arch"], {})[row["variant"]] = row["latency_ms"]
    latencies = {arch: both for arch, both in latencies.items() if len(both) == len(FORMS)}
    if not latencies:
        raise UserError(
            f"--forms needs a network in both variants, {' and '.join(map(repr, FORMS))}"
        )
    figure = _figure(8, 1.2 + 0.3 * len(latencies))
    axes = figure.subplots()
    for i, form in enumerate(FORMS):
        places = [place + 0.4 * (i - 0.5) for place in range(len(latencies))]
        values = [both[form] for both in latencies.values()]
        bars = axes.barh(places, values, 0.4, label=form)
        axes.bar_label(bars, [f" {value:.4g}" for value in values], fontsize="x-small")
    axes.set_yticks(range(len(latencies)), list(latencies))
    axes.invert_yaxis()
    axes.margins(x=0.1, y=0.01)
    axes.set_xlabel(f"latency in ms, {_point(_smallest(rows)[0])}")
    axes.set_title("Latency before and after re-parameterization")
    axes.legend(loc="lower right")
    return as_png(figure)


def reported_accuracy(arch: str) -> tuple[float, str] | None:
    """Return the top-1 accuracy in percent that is reported for published weights of `arch`.

    The second value is the image size, such as "320 px", where it is not the usual 224 px, else "".
    The original repository's figure comes before those of others, and those on other data sets
    than ImageNet are left out.
    """
    entries = [
        entry
        for entry in catalog.PUBLISHED
        if entry.arch == arch and entry.top1 is not None and entry.data == "ImageNet"
    ]
    entries.sort(key=lambda entry: entry.source in ("basecls", "timm"))  # stable: originals first
    if not entries:
        return None
    return entries[0].top1, entries[0].reported_by.partition(" at ")[2]


def _smallest(rows: Rows) -> Rows:
    """Return the rows of the smallest batch size and number of threads."""
    smallest = min((row["batch"], row["threads"]) for row in rows)
    return [row for row in rows if (row["batch"], row["threads"]) == smallest]


def _point(row: dict[str, Any]) -> str:
    threads = f"{row['threads']} thread{'s' * (row['threads'] > 1)}"
    return f"{row['size']} px, batch {row['batch']}, {threads}"


def _family_and_variant(arch: str) -> tuple[str, str]:
    """Split a name before the variant: ("RepVGG", "A0"), ("RepGhost", "050")."""
    family = re.match(r"(.+?)(?=[A-Z]?\d)", arch)[1]
    return family, arch[len(family) :]


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # the object interface draws without a display

    return Figure(figsize=(width, height), layout="constrained")
