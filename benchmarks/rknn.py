"""Accuracy of Rockchip kits in the simulator of rknn-toolkit2, by how int8's ranges are chosen."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from deployment.boards.kit import NETWORK
from utils import UserError

from .report import Rows


def runs(kits: list[str], algorithms: list[str]) -> Iterator[tuple[Path, list[str]]]:
    """Yield each kit with the options of its convert.py for each algorithm and each int8 file.

    Raises UserError for a folder that is no Rockchip kit with images to evaluate on.
    """
    for kit in map(Path, kits):
        try:
            own = json.loads((kit / NETWORK).read_text())["name"]
        except (OSError, ValueError, KeyError, TypeError):
            own = None
        if not own or not all((kit / name).is_file() for name in ("convert.py", "val_label.txt")):
            raise UserError(
                f"{kit} is no kit with images to simulate; write one by export.py --kit rknn --data"
            )
        for algorithm in algorithms:
            yield kit, ["--algorithm", algorithm]
        for file in sorted(kit.glob("*.onnx")):
            if file.stem != own:
                yield kit, ["--qdq", str(file)]


def accuracy(
    kits: list[str],
    algorithms: list[str],
    python: str,
    target: str,
    images: int | None,
    step: Callable[[], object],
) -> Rows:
    """Return a row with the results of convert.py for each of `runs`.

    Args:
        kits: folders of kits, in which files of quantize.py --target rknn may lie.
        algorithms: values of convert.py's --algorithm.
        python: Python of the environment that rknn-toolkit2 is installed in.
        target: name of the chip.
        images: number of images to simulate; None for all of the kit.
        step: called after each run.

    Raises UserError when a conversion fails.
    """
    rows = []
    for kit, options in [*runs(kits, algorithms)]:
        with tempfile.TemporaryDirectory() as folder:
            report = Path(folder) / "report.json"
            command = [python, str(kit / "convert.py"), "--target", target, *options]
            command += ["--json", str(report), "--out", str(Path(folder) / "network.rknn")]
            if images is not None:
                command += ["--evaluate", str(images)]
            try:
                done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            except OSError as error:
                raise UserError(
                    f"cannot run {python}: {error.strerror}; give by --python that of an "
                    "environment with rknn-toolkit2"
                ) from None
            if done.returncode != 0:
                last = done.stdout.decode(errors="replace").strip().splitlines()[-1:]
                raise UserError(f"{kit}, {' '.join(options)}: {' '.join(last)}")
            rows.append(json.loads(report.read_text()))
        step()
    return rows
