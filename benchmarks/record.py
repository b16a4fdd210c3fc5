"""Records of results, docs/results/NAME.json: the figures of a command and what they depend on."""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

import cli
import utils

FOLDER = utils.ROOT / "docs" / "results"
_PACKAGES = ("megengine", "numpy", "opencv-python", "onnx", "onnxruntime", "openvino", "torch",
             "timm", "pillow")  # fmt: skip
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni")
_PARENT_FOLDERS = re.compile(r'(?<![\w.~/:-])(?:/[^/\s"]+)+/')  # of an absolute path; not of a URL


def name(text: str) -> str:
    """Return the name of a record, which becomes a file name; an argparse type."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", text):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name of letters, digits, '.', '_' and '-'; "
            "give one such as repvgg_a0-int8"
        )
    cli.output_file(_file(text))
    return text


def add_argument(parser: argparse._ActionsContainer) -> None:
    """Add --record."""
    parser.add_argument(
        "--record",
        type=name,
        metavar="NAME",
        help="write the results, with the command, the date, the machine and the versions, to "
        "docs/results/NAME.json, which the documentation's tables are made from",
    )


def write(record: str, rows: list[dict[str, Any]], about: dict[str, Any] | None = None) -> None:
    """Write rows of figures, as --json prints them, to docs/results/`record`.json.

    `about` is what else a reader wants to know, such as the checkpoint. As the records are
    published, absolute paths are shortened to the name of the file.

    Raises UserError when the file cannot be written; an earlier record is then untouched.
    """
    contents = {
        "command": shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "machine": machine(),
        "versions": versions(),
        "figures": rows,
        **({"about": about} if about else {}),
    }
    text = _PARENT_FOLDERS.sub("", utils.json_text(contents, ensure_ascii=False)) + "\n"
    utils.write_atomically(_file(record), lambda file: file.write(text.encode(errors="escaped")))


def _file(record: str) -> Path:
    return FOLDER / f"{record}.json"


def machine() -> str:
    """Describe the processor: its model, the cores this process may use, and SIMD features."""
    text = ""
    with suppress(OSError):  # Linux has this file, others have not
        text = Path("/proc/cpuinfo").read_text()
    fields = dict(re.findall(r"^(model name|flags)\s*: (.*)$", text, re.MULTILINE))
    flags = fields.get("flags", "").split()
    own = hasattr(os, "sched_getaffinity")  # Linux
    cores = len(os.sched_getaffinity(0)) if own else os.cpu_count()
    return ", ".join(
        [
            fields.get("model name") or platform.processor() or platform.machine(),
            f"{cores} cores",
            *(feature for feature in _FEATURES if feature in flags),
            f"{platform.system()} {platform.machine()}",
        ]
    )


def commit() -> str:
    """Return the commit of this checkout, with "-dirty" if files differ, or "unknown"."""
    command = ["git", "-C", str(utils.ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:  # git is not installed
        return "unknown"
    return done.stdout.strip() or "unknown"


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide about results."""
    installed = {"python": platform.python_version()}
    for package in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed
