"""Compute accuracy and images per second from the result files of an Ascend board.

File formats are those of ais_bench, and of the retired benchmark tool that RepVGG in Ascend's
ModelZoo-PyTorch (commit a018f14af) is run with.
"""

from __future__ import annotations

import json
import re
from os import PathLike
from pathlib import Path

import numpy as np

from utils import UserError, say_once

from . import kit
from .labels import read_labels

_WITH_BACKGROUND = 1001


def score(dump: str | PathLike, labels: str | PathLike) -> dict:
    """Return the accuracies of the outputs of a board, in the format of result.json.

    Args:
        dump: folder with a file for each image NAME, or ais_bench's summary of one, a .json file.
            The first line of the retired tool's NAME_1.txt holds the outputs, separated by blanks;
            of ais_bench, NAME_0.npy, NAME_0.bin (float32) or NAME_0.txt does.
        labels: file to read by `read_labels`.

    Of 1001 outputs, the first is the background, which the labels do not count, unless the kit's
    network.json beside the labels has as many classes. Raises UserError when an output is
    malformed, is not of the kit's network, or its image has no label.
    """
    outputs_of = _output_files(Path(dump))
    known = read_labels(labels)
    expected = _classes_beside(Path(labels))
    hits = np.zeros(5, int)
    classes, first = None, next(iter(outputs_of.values()))
    for name, file in outputs_of.items():
        outputs = _read_outputs(file)
        if classes not in (None, len(outputs)):
            raise UserError(
                f"{file} has {len(outputs)} outputs, but {first} {classes}; give the outputs of "
                "one network"
            )
        classes = len(outputs)
        if expected is not None and classes not in (expected, _WITH_BACKGROUND):
            raise UserError(
                f"{file} has {classes} outputs, but the kit's network has {expected} classes; "
                "compile it with an output of float32, or give its outputs as .npy"
            )
        if name not in known:
            raise UserError(
                f"{labels} has no label for {name}, of which {file} is the output; give the "
                "val_label.txt of its kit"
            )
        has_background = classes == _WITH_BACKGROUND and expected != _WITH_BACKGROUND
        right = known[name] + int(has_background)
        if not 0 <= right < classes:
            raise UserError(
                f"{labels} gives {name} the label {known[name]}, but {file} has {classes} outputs; "
                "give the val_label.txt of its kit"
            )
        best = np.argsort(-outputs, kind="stable")[:5]
        hits[: len(best)] += best == right
    if missing := len(known) - len(outputs_of):
        say_once(f"warning: {missing} of the {len(known)} images of {labels} have no output")
    shares = (hits.cumsum() / len(outputs_of)).tolist()[:classes]
    facts = {"Number of images": str(len(outputs_of)), "Number of classes": str(classes)}
    facts |= {
        f"Top{n} accuracy": f"{round(share * 100, 2)}%" for n, share in enumerate(shares, start=1)
    }
    return {
        "title": "Overall statistical evaluation",
        "value": [{"key": key, "value": value} for key, value in facts.items()],
    }


def _classes_beside(labels: Path) -> int | None:
    """Return the number of classes in the network.json of the kit that the labels are of."""
    try:
        return len(json.loads((labels.parent / kit.NETWORK).read_text(encoding="utf-8"))["classes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _output_files(dump: Path) -> dict[str, Path]:
    """Return image name -> file of its outputs, in a folder or by a summary of ais_bench."""
    if dump.suffix == ".json" and dump.is_file():
        return _files_of_summary(dump)
    if not dump.is_dir():
        raise UserError(f"there is no folder {dump}; give the one with the dumped outputs")
    for pattern in ("*_0.npy", "*_0.bin", "*_0.txt", "*.txt"):  # the last: the retired tool's
        if files := sorted(dump.glob(pattern)):
            return {file.stem.rpartition("_")[0]: file for file in files}
    raise UserError(
        f"there are no outputs in {dump}; give the folder with NAME_0.npy, .bin or .txt files of "
        "ais_bench, or NAME_1.txt files of the benchmark tool"
    )


def _files_of_summary(file: Path) -> dict[str, Path]:
    """Return image name -> file of its outputs, which lie beside the summary or where it says.

    A batch has several input files, and one output file for each; of a network with several outputs
    the first is taken.
    """
    try:
        runs = _read_summary(file)["filesinfo"].values()
        named: dict[str, Path] = {}
        for run in runs:
            outputs = [Path(name) for name in run["outfiles"] if Path(name).stem.endswith("_0")]
            named |= {path.stem.rpartition("_")[0]: path for path in outputs}
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{file} lists no outputs; give a summary of ais_bench that was run with --input and "
            "--output"
        ) from None
    if not named:
        raise UserError(f"{file} lists no outputs; run ais_bench with --output")
    # where it was copied from the board; of older releases the summary is inside the folder
    folder = file.parent / file.stem.removesuffix("_summary")
    folder = folder if folder.is_dir() else file.parent
    found = {}
    for name, path in sorted(named.items()):  # a relative one is of the folder it was run in
        beside = folder / path.name
        found[name] = path if path.is_file() and not beside.is_file() else beside
    return found


def _read_summary(file: Path) -> dict:
    try:
        return json.loads(file.read_text())
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no JSON"
        raise UserError(f"cannot read {file}: {reason}; copy it from the board again") from None


def _read_outputs(file: Path) -> np.ndarray:
    try:
        if file.suffix == ".npy":
            outputs = np.load(file, allow_pickle=False).reshape(-1).astype(np.float32)
        elif file.suffix == ".bin":
            outputs = np.fromfile(file, "<f4")
        else:
            text = file.read_text(encoding="ascii")
            first_line = text.partition("\n")[0]
            outputs = np.array((text if file.stem.endswith("_0") else first_line).split(), "f4")
    except (OSError, ValueError, EOFError):
        outputs = np.empty(0)
    if not len(outputs) or not np.isfinite(outputs).all():
        raise UserError(
            f"{file} is no dumped output, numbers in one line with blanks between, or float32 in a "
            ".npy or .bin file; run the tool again, and copy its outputs"
        )
    return outputs


def frames_per_second(perf_file: str | PathLike, chip: str) -> tuple[str, float]:
    """Return (batch size, images/s) of a chip from a performance file of the board's tool.

    Of ais_bench's NAME_summary.json it is the throughput; of the retired benchmark tool's
    perf_vision_batchsize_N_device_D.txt the eighth value, the interface's throughput. For a 310,
    whose four cores are benchmarked one at a time, it is four times that value. Raises UserError
    when the file is none of both.
    """
    cores = {"310": 4, "310P": 1}[chip]
    if Path(perf_file).suffix == ".json":
        summary = _read_summary(Path(perf_file))
        try:
            rate = float(summary["throughput"])
            # the throughput is 1000 * batch size / mean time
            batch = round(rate * float(summary["NPU_compute_time"]["mean"]) / 1000)
        except (KeyError, TypeError, ValueError, OverflowError):
            raise UserError(
                f"{perf_file} is no summary of ais_bench; give the NAME_summary.json that it wrote"
            ) from None
        return str(batch), rate * cores
    try:
        text = Path(perf_file).read_text()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(
            f"cannot read {perf_file}: {reason}; copy it from the board again"
        ) from None
    values = re.findall(r":(.*?),", text.replace("\n", ",") + ",")
    pieces = Path(perf_file).name.split("_")
    try:
        rate = float(values[7].replace("samples/s", ""))
        return pieces[3], rate * cores
    except (IndexError, ValueError):
        raise UserError(
            f"{perf_file} is no perf_vision_batchsize_N_device_D.txt of the benchmark tool; give "
            "one, or the NAME_summary.json of ais_bench"
        ) from None
