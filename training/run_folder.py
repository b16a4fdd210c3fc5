"""The folder that a run writes: log.txt, metrics.csv, curves.png, run.json and the checkpoints."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.figures import as_png
from utils import UserError, remove_temporary_files, write_atomically

from . import lock, signals
from .versions import versions


class RunFolder:
    """The output folder of a run, SAVE/ARCH/TAG, made when it is missing.

    It belongs to this process alone until the process ends. What another process had not finished
    writing when it was killed is removed. With `silent`, as in all workers but the first, nothing
    is written or printed. Raises UserError when the folder cannot be written, or belongs to another
    process.
    """

    def __init__(self, path: Path, silent: bool = False):
        self.path, self.silent = path, silent
        self._drawn = -math.inf  # when curves.png was drawn
        if silent:
            return
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._log = open(  # noqa: SIM115
                path / "log.txt", "a", encoding="utf-8", errors="escaped"
            )
        except OSError as error:
            raise UserError(
                f"cannot write to the output folder {path}: {error.strerror}; give another --save "
                "or --tag"
            ) from None
        if not lock.acquire(self._log):
            raise UserError(
                f"another run is writing to {path}; wait until it ends, or give another --tag"
            )
        remove_temporary_files(path)

    def remove_if_unused(self) -> None:
        """Remove the folder if nothing has been written to it."""
        if not self.silent and not os.fstat(self._log.fileno()).st_size:
            with suppress(OSError):
                (self.path / "log.txt").unlink()
                self.path.rmdir()  # fails unless it is empty

    @property
    def latest(self) -> Path:
        """Path of the checkpoint to resume from."""
        return self.path / "latest.pkl"

    @property
    def best(self) -> Path:
        """Path of the weights with the best validation accuracy so far."""
        return self.path / "best.pkl"

    @property
    def metrics(self) -> Path:
        """Path of the table of all epochs."""
        return self.path / "metrics.csv"

    def of_epoch(self, epoch: int) -> Path:
        """Path of the weights after epoch 1, 2, ..., where the run keeps them."""
        return self.path / f"epoch-{epoch}.pkl"

    def remove_epochs_but(self, kept: Collection[int]) -> None:
        """Remove the weights of all epochs but these."""
        if self.silent:
            return
        for file in self.path.glob("epoch-*.pkl"):
            number = file.stem.removeprefix("epoch-")
            if number.isdecimal() and int(number) not in kept:
                file.unlink()

    def log(self, line: str) -> None:
        """Print a line, above the progress bar if there is one, and keep it in log.txt.

        Where that fails, as when the reader of a pipe has ended, the run is told to save and end.
        """
        if self.silent:
            return
        try:
            self._log.write(line + "\n")
            self._log.flush()
            tqdm.write(line)
            sys.stdout.flush()
        except OSError:
            signals.output_lost()
            with suppress(OSError):
                print(line, file=sys.stderr)

    def write_run(self, arguments: dict[str, Any]) -> None:
        """Write run.json: the arguments, and the versions that were used."""
        content = {"arguments": arguments, "versions": versions()}
        self.write("run.json", json.dumps(content, indent=2).encode() + b"\n")

    def write_metrics(self, history: list[dict[str, float]], last: bool) -> None:
        """Write metrics.csv and curves.png; the latter every 10 seconds at most until `last`."""
        if self.silent:
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        self.write(self.metrics.name, text.getvalue().encode())
        if last or time.monotonic() > self._drawn + 10:  # drawing takes half a second
            self.write("curves.png", _curves(history))
            self._drawn = time.monotonic()

    def write(self, name: str, content: bytes) -> None:
        """Write a file of this name, replaced as a whole or not at all."""
        if self.silent:
            return
        write_atomically(self.path / name, lambda file: file.write(content))


def _curves(history: list[dict[str, float]]) -> bytes:
    """Return charts of loss, accuracy and learning rate over the epochs, as a PNG file."""
    from matplotlib.figure import Figure  # the object interface draws without a display

    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    loss, accuracy, rate = figure.subplots(1, 3)
    for axes, title, columns in (
        (
            loss,
            "loss",
            {"train_loss": "training", "val_loss": "validation", "ema_loss": "averaged weights"},
        ),
        (
            accuracy,
            "accuracy, %",
            {
                "train_top1": "training",
                "val_top1": "validation",
                "val_top5": "validation top-5",
                "ema_top1": "averaged weights",
            },
        ),
        (rate, "learning rate after the epoch", {"lr": None}),
    ):
        for column, label in columns.items():
            if column in history[0]:
                axes.plot(epochs, [row[column] for row in history], marker=".", label=label)
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        positive = any(line.get_ydata().max() > 0 for line in axes.lines)
        if axes is loss and positive:  # the first validation can be huge
            axes.set_yscale("log")
        if len(columns) > 1:
            axes.legend()
    return as_png(figure)
