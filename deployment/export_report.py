"""The report of export.py on a file that it has written."""

from __future__ import annotations

from typing import Any


def text(report: dict[str, Any]) -> str:
    """Return the report as lines with labels; its keys are those of export.py --json."""
    images = report["takes"]
    raw = set(images["std"]) == {1.0} and not any(images["mean"])
    options = "".join(f", {name}={value}" for name, value in report["options"].items())
    numbers = f"{report['network_parameters']:,}"
    if report["format"] == "onnx":
        numbers = (
            f"{report['parameters']:,} in {report['initializers']} initializers; "
            f"the network's: {numbers}"
        )
        made_of = ", ".join(f"{count} {kind}" for kind, count in report["operators"].items())
        lines = [("operators", f"{made_of} (opset {report['opset']})")]
        runtime = "onnxruntime"
    else:
        lines = [("layout", report["layout"])]
        runtime = "MegEngine's runtime"
    colors = {1: "grey", 3: images["color"]}.get(images["channels"], "several channels")
    outputs = report.get("outputs") or [report["output"]]
    count = report["num_classes"]
    classes = f"{count} classes" if count else "no classifier"
    how = "on photographs, in float16, " if report.get("half") else ""
    lines = [
        ("source", report["source"]),
        (
            "architecture",
            f"{report['arch']}{options}, {report['form']} form, {classes}",
        ),
        (
            "input",
            f"{_tensor(*report['input'])}, {colors}, "
            f"{'pixels of 0 to 255' if raw else 'normalized'}",
        ),
        *(("output", _tensor(*output)) for output in outputs),
        ("parameters", numbers),
        *lines,
        ("verified", f"relative error {report['relative_error']:.1e} {how}under {runtime}"),
        ("file", f"{report['file']}, {report['bytes'] / 1e6:.1f} MB"),
        ("sha256", report["sha256"]),
    ]
    if "source_sha256" not in report:
        lines.append(("note", "these weights are random; give --model for trained ones"))
    return "\n".join(f"{label + ':':14}{value}" for label, value in lines)


def _tensor(name: str, shape: list[int | str]) -> str:
    return f"{name} [{', '.join(map(str, shape))}]"
