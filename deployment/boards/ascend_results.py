"""Compute accuracy and images per second from the result files of an Ascend board.

File formats are those of the benchmark tool that RepVGG in Ascend's ModelZoo-PyTorch (commit
a018f14af) is run with.
"""

from __future__ import annotations

import re
from os import PathLike
from pathlib import Path

import numpy as np

from utils import UserError

from .ascend import read_labels


def score(dump: str | PathLike, labels: str | PathLike) -> dict:
    """Return the accuracies of the outputs in a dump folder, in the format of result.json.

    The first line of a file NAME_INDEX.txt holds the outputs for the image NAME, separated by
    blanks. Of 1001 classes, the first is the background, which the labels do not count.

    Raises UserError when an output is malformed or its image has no label.
    """
    dump = Path(dump)
    if not dump.is_dir():
        raise UserError(f"there is no folder {dump}; give the one with the dumped outputs")
    files = sorted(dump.glob("*.txt"))
    if not files:
        raise UserError(f"there are no outputs in {dump}; give the folder with NAME_1.txt files")
    known = read_labels(labels)
    hits = np.zeros(5, int)
    classes = None
    for file in files:
        outputs = _read_outputs(file)
        if classes not in (None, len(outputs)):
            raise UserError(f"{file} has {len(outputs)} outputs, but {files[0]} {classes}")
        classes = len(outputs)
        name = file.stem.rpartition("_")[0]
        if name not in known:
            raise UserError(f"{labels} has no label for {name}, of which {file} is the output")
        best = np.argsort(-outputs, kind="stable")[:5]
        hits[: len(best)] += best == known[name] + (classes == 1001)
    shares = (hits.cumsum() / len(files)).tolist()[:classes]
    facts = {"Number of images": str(len(files)), "Number of classes": str(classes)}
    facts |= {
        f"Top{n} accuracy": f"{round(share * 100, 2)}%" for n, share in enumerate(shares, start=1)
    }
    return {
        "title": "Overall statistical evaluation",
        "value": [{"key": key, "value": value} for key, value in facts.items()],
    }


def _read_outputs(file: Path) -> np.ndarray:
    try:
        with open(file, encoding="ascii") as lines:
            outputs = np.array(lines.readline().split(), np.float32)
    except (OSError, ValueError):
        outputs = np.empty(0)
    if not len(outputs) or not np.isfinite(outputs).all():
        raise UserError(f"{file} is no dumped output, numbers in one line with blanks between")
    return outputs


def frames_per_second(perf_file: str | PathLike, chip: str) -> tuple[str, float]:
    """Return (batch size, images/s) of a chip from a perf_vision_batchsize_N_device_D.txt.

    The rate is the eighth value in the file, the interface's throughput; for a 310, whose four
    cores are benchmarked one at a time, four times that value. Raises UserError when the file is
    not such a file.
    """
    try:
        text = Path(perf_file).read_text()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "it is no text"
        raise UserError(f"cannot read {perf_file}: {reason}") from None
    values = re.findall(r":(.*?),", text.replace("\n", ",") + ",")
    pieces = Path(perf_file).name.split("_")
    try:
        rate = float(values[7].replace("samples/s", ""))
        return pieces[3], rate * {"310": 4, "310P": 1}[chip]
    except (IndexError, ValueError):
        raise UserError(
            f"{perf_file} is no perf_vision_batchsize_N_device_D.txt of the benchmark tool"
        ) from None
