"""Report rows of measurements as a table, JSON, CSV, a chart and a record."""

from __future__ import annotations

import argparse
import csv
import io
from dataclasses import dataclass
from typing import Any

import tabulate

import cli
from data.figures import as_png
from utils import json_text, write_atomically

from . import record

tabulate.MIN_PADDING = 0  # around headings

Rows = list[dict[str, Any]]  # a dictionary per variant and point, all with the same keys


@dataclass(frozen=True)
class Layout:
    """How the rows of one kind of measurement are shown.

    Attributes:
        columns: columns of the table, key in the row -> heading and format.
        value: key of the value that the chart's bars show; the range from "slowest" to "fastest" is
            drawn where rows have these keys.
        unit: readable unit of `value`.
        bar: key whose values label the bars.
        color: key whose values have bars of different colours beside each other.
        panel: keys for whose values there are separate charts.
    """

    columns: dict[str, tuple[str, str]]
    value: str
    unit: str
    bar: str = "variant"
    color: str | None = None
    panel: tuple[str, ...] = ("arch", "size", "batch")


_NETWORK = {"arch": ("", "{}"), "size": ("px", "{}")}
_POINT = {**_NETWORK, "batch": ("batch", "{}")}
_SECONDS = {
    "seconds": ("s", "{:.3f}"),
    "fastest": ("fastest", "{:.3f}"),
    "slowest": ("slowest", "{:.3f}"),
    "images_per_second": ("images/s", "{:.1f}"),
}
_VARIANT = {"variant": ("", "{}")}
_PARAMETERS = {"parameters": ("parameters", "{:,}")}
_MEMORY = {"peak_mb": ("MB", "{:.0f}")}
LAYOUTS = {  # sub-command -> layout
    "infer": Layout(
        {
            **_POINT,
            "threads": ("threads", "{}"),
            **_VARIANT,
            "latency_ms": ("ms", "{:.2f}"),
            "p90_ms": ("p90", "{:.2f}"),
            "p99_ms": ("p99", "{:.2f}"),
            "images_per_second": ("images/s", "{:.1f}"),
            "slowest": ("slowest", "{:.1f}"),
            "fastest": ("fastest", "{:.1f}"),
            "times_first": ("x first", "{:.2f}"),
            **_MEMORY,
            **_PARAMETERS,
            "multiply_adds": ("multiply-adds", "{:,}"),
            "gflops": ("GFLOP/s", "{:.1f}"),
            "peak_share": ("of peak", "{:.0%}"),
        },
        value="images_per_second",
        unit="images/s, median of all passes (range: medians of turns)",
        color="threads",
    ),
    "throughput": Layout(
        {
            **_NETWORK,
            **_PARAMETERS,
            **_VARIANT,
            "streams": ("streams", "{}"),
            "mean_ms": ("ms, mean", "{:.2f}"),
            "latency_ms": ("median", "{:.2f}"),
            "frames_per_second": ("frames/s", "{:.1f}"),
            "slowest": ("slowest", "{:.1f}"),
            "fastest": ("fastest", "{:.1f}"),
            **_MEMORY,
        },
        value="frames_per_second",
        unit="frames/s, median of the turns (range: all)",
        color="streams",
        panel=("arch", "size"),
    ),
    "train": Layout(
        {**_POINT, **_VARIANT, **_SECONDS, "speedup": ("x stock", "{:.1f}")},
        value="seconds",
        unit="seconds of a step, median and range",
    ),
    "against": Layout(
        {
            **_POINT,
            "threads": ("threads", "{}"),
            **_VARIANT,
            **_SECONDS,
            "times_pytorch": ("x PyTorch", "{:.2f}"),
            **_MEMORY,
        },
        value="images_per_second",
        unit="images/s, median of the steps",
        color="threads",
    ),
    "workers": Layout(
        {**_POINT, "workers": ("workers", "{}"), **_SECONDS, "speedup": ("x the first", "{:.2f}")},
        value="seconds",
        unit="seconds of a step, median and range",
        bar="workers",
    ),
    "all-reduce": Layout(
        {
            "arch": ("", "{}"),
            "megabytes": ("MB", "{:.1f}"),
            "workers": ("workers", "{}"),
            "hosts": ("hosts", "{}"),
            "seconds": ("s", "{:.4f}"),
            "fastest": ("fastest", "{:.4f}"),
            "slowest": ("slowest", "{:.4f}"),
        },
        value="seconds",
        unit="seconds of an all-reduce, median and range",
        bar="workers",
        panel=("arch",),
    ),
    "memory": Layout(
        {
            **_POINT,
            **_VARIANT,
            **_MEMORY,
            "times_less": ("x less", "{:.2f}"),
            "seconds": ("s", "{:.3f}"),
            "times_longer": ("x the time", "{:.2f}"),
        },
        value="peak_mb",
        unit="MB at the peak",
    ),
    "int8": Layout(
        {
            "arch": ("", "{}"),
            "scheme": ("", "{}"),
            "top1": ("top-1", "{:.2f}"),
            "top5": ("top-5", "{:.2f}"),
            "sqnr": ("dB", "{:.1f}"),
            "agreement": ("same class", "{:.1f}"),
            "onnxruntime": ("onnxruntime", "{:.1f}"),
            "openvino": ("OpenVINO", "{:.1f}"),
        },
        value="top1",
        unit="top-1, %",
        bar="scheme",
        panel=("arch",),
    ),
    "data": Layout(
        {
            **_VARIANT,
            "images_per_second": ("images/s", "{:.0f}"),
            "per_core": ("a core", "{:.0f}"),
            "slowest": ("slowest", "{:.0f}"),
            "fastest": ("fastest", "{:.0f}"),
            "times_first": ("x first", "{:.2f}"),
        },
        value="per_core",
        unit="images/s of a core, median and range",
        panel=(),
    ),
    "rknn": Layout(
        {
            "network": ("", "{}"),
            "ranges": ("ranges", "{}"),
            "images": ("images", "{}"),
            "float_top1": ("top-1 of float", "{:.2f} %"),
            "top1": ("top-1", "{:.2f} %"),
            "agreement": ("same class as float", "{:.2f} %"),
            "build_seconds": ("build, s", "{:.1f}"),
        },
        value="agreement",
        unit="images with the class of the float network, percent",
        bar="ranges",
        panel=("network",),
    ),
    "nv12": Layout(
        {
            "crop": ("", "{}"),
            "input": ("input", "{}"),
            "images": ("images", "{}"),
            "top1": ("top-1", "{:.2f} %"),
            "top5": ("top-5", "{:.2f} %"),
            "agreement": ("same class as the first", "{:.2f} %"),
        },
        value="top1",
        unit="top-1 accuracy in percent",
        bar="input",
        color="crop",
        panel=("arch",),
    ),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that choose the forms of a report."""
    cli.add_flags(parser, "--json")
    for flag, what in (
        ("--csv", "CSV file to write the results to"),
        ("--chart", "PNG file to draw the results in as bars"),
    ):
        parser.add_argument(flag, type=cli.output_file, metavar="FILE", help=what)
    record.add_argument(parser)


def write_report(args: argparse.Namespace, title: str, rows: Rows, layout: Layout) -> None:
    """Write the files that `args` names, and print the rows.

    Raises UserError when a file cannot be written; the rows are printed all the same, and the files
    are written where nobody reads what is printed.
    """
    try:
        _write_files(args, title, rows, layout)
    finally:
        print(json_text(rows) if args.json else f"{title}\n{table(rows, layout)}")


def _write_files(args: argparse.Namespace, title: str, rows: Rows, layout: Layout) -> None:
    if args.record:  # first, as it has all figures
        record.write(args.record, rows)
    if args.csv:
        write_atomically(args.csv, lambda file: file.write(as_csv(rows)))
    if args.chart:
        write_atomically(args.chart, lambda file: file.write(chart(title, rows, layout)))


def table(rows: Rows, layout: Layout) -> str:
    """Return the rows as a plain-text table, with "-" for None."""
    headings, formats = zip(*layout.columns.values(), strict=True)
    cells = [
        ["-" if row[name] is None else form.format(row[name])
         for name, form in zip(layout.columns, formats, strict=True)]
        for row in rows
    ]  # fmt: skip
    align = ["left" if isinstance(rows[0][name], str) else "right" for name in layout.columns]
    return tabulate.tabulate(cells, headings, "plain", disable_numparse=True, colalign=align)


def as_csv(rows: Rows) -> bytes:
    """Return all values of all rows as CSV with a header line."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def chart(title: str, rows: Rows, layout: Layout) -> bytes:
    """Draw the rows as bars with their range, as a PNG."""
    from matplotlib.figure import Figure  # the object interface draws without a display

    panels: dict[tuple, Rows] = {}
    for row in rows:
        panels.setdefault(tuple(row[name] for name in layout.panel), []).append(row)
    colors = list(dict.fromkeys(row[layout.color] for row in rows)) if layout.color else [None]
    bars = max(len(panel) for panel in panels.values())
    figure = Figure(figsize=(8, len(panels) * (1 + 0.25 * bars)), layout="constrained")
    figure.suptitle(title, fontsize="medium", wrap=True)
    for axes, panel in zip(
        figure.subplots(len(panels), squeeze=False)[:, 0], panels.values(), strict=True
    ):
        _draw(axes, panel, layout, colors)
    return as_png(figure)


def _draw(axes: Any, rows: Rows, layout: Layout, colors: list) -> None:
    """Draw one panel; bars with the same label and different colours stand side by side."""
    names = list(dict.fromkeys(str(row[layout.bar]) for row in rows))
    thickness = 0.8 / len(colors)
    for i, color in enumerate(colors):
        group = [row for row in rows if layout.color is None or row[layout.color] == color]
        values = [row[layout.value] for row in group]
        places = [
            names.index(str(row[layout.bar])) + (i - (len(colors) - 1) / 2) * thickness
            for row in group
        ]
        spread = None
        if group and "slowest" in group[0]:
            ends = [sorted((row["slowest"], row["fastest"])) for row in group]
            low = [max(0, v - end[0]) for v, end in zip(values, ends, strict=True)]
            high = [max(0, end[1] - v) for v, end in zip(values, ends, strict=True)]
            spread = [low, high]
        label = f"{layout.color}: {color}" if layout.color else None
        drawn = axes.barh(places, values, thickness, xerr=spread, label=label, capsize=2)
        axes.bar_label(drawn, [f" {value:.4g}" for value in values], fontsize="small")
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel(layout.unit)
    units = {"arch": "{}", "network": "{}", "size": "{} px", "batch": "batch {}"}
    axes.set_title(
        ", ".join(units[name].format(rows[0][name]) for name in layout.panel), loc="left"
    )
    if layout.color:
        axes.legend()
