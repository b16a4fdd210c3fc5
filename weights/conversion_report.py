"""What convert_pretrained_weight.py prints: the report of a conversion, and what is published."""

from __future__ import annotations

from typing import Any

from data.transforms import Preprocessing
from utils import shown

from . import entries, stated_preprocessing
from .published import PUBLISHED

ABOUT_PUBLISHED = """\
Weights trained elsewhere, on ImageNet where nothing else is said. The accuracy is what
they report; none of it was measured here. They stay under the licence of those who
trained them.
"""
ROW = "{:10} {:25} {:16} {:>6} {:>6}  {:>4} {:>5}  {:12} {:52} {}"
HEADINGS = (
    "source", "their name", "architecture", "top-1", "top-5", "size", "crop", "licence",
    "reported by", "where",
)  # fmt: skip


def published() -> str:
    """Return the table of published weights."""
    lines = [ABOUT_PUBLISHED, ROW.format(*HEADINGS)]
    for entry in PUBLISHED:
        accuracy = (f"{v:.2f}" if v is not None else "-" for v in (entry.top1, entry.top5))
        row = ROW.format(
            entry.source,
            entry.name,
            entry.arch,
            *accuracy,
            entry.size,
            entry.crop_ratio,
            entry.licence,
            entry.reported_by or "-",
            entry.where,
        )
        lines.append(row.rstrip())
    return "\n".join(lines)


def text(report: dict[str, Any]) -> str:
    """Return the report as lines with labels; its keys are those of --json."""
    options = [f"{name}={value}" for name, value in report["options"].items()]
    architecture = ", ".join([report["arch"], *options])
    classes = f"{report['classes']} classes" if report["classes"] else "no classifier"
    entry = report["entry"] or entries.ROOT
    if report["other_entries"]:
        entry += f" was taken; there is also {', '.join(report['other_entries'])} (--entry NAME)"
    held = Preprocessing(**report["preprocessing"])
    lines = [
        ("source", report["source"]),
        *([("entry", entry)] if entry != entries.ROOT or report["other_entries"] else []),
        ("architecture", f"{architecture}, {report['form']} form, {classes}"),
        ("tensors", f"{report['mapped']} mapped; dropped: {_dropped(report['dropped'])}"),
        *([("input", report["input"])] if report["input"] else []),
        *stated_preprocessing.report(held, report["class_names"], report["origins"]),
        ("verified", _verified(report)),
        ("layout", report["layout"] or "this project's"),
        ("output", report["output"]),
        ("sha256", report["sha256"]),
        *[("note", note) for note in [report["note"], *report["export_notes"]] if note],
    ]
    # names are those of the file, which may hold what a terminal would obey
    return "\n".join(
        f"note: {shown(value)}" if label == "note" else f"{label + ': ':16}{shown(value)}"
        for label, value in lines
    )


def _dropped(names: list[str]) -> str:
    """Return the names of tensors in words, in which counters of one name are counted."""
    ends = [name.rpartition(".")[2] for name in names]
    counts = {end: ends.count(end) for end in dict.fromkeys(ends) if end in entries.COUNTERS}
    said = [f"{count} x {end}" for end, count in counts.items()]
    said += [name for name, end in zip(names, ends, strict=True) if end not in counts]
    return ", ".join(said) or "none"


def _verified(report: dict[str, Any]) -> str:
    if report["form"] == "deploy":
        return "fused already; the logits are finite"
    precision = "" if report["precision"] == "float32" else f", in {report['precision']}"
    return f"relative error {report['relative_error']:.1e} after fusion{precision}"
