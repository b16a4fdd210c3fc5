"""Runs that take seconds: a small network, a few images, and what a run has left."""

import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from tests.support import write_image_folder

PROGRAM = Path(__file__).with_name("train_small.py")
FLAGS = ["--size", "32", "--batch-size", "4", "--epochs", "2", "--save-freq", "3", "--workers", "1",
         "--print-freq", "1", "--mixup", "0.2", "--ema", "0.9", "--warmup-epochs", "1"]  # fmt: skip


# a shell's background job, in which this may run, ignores Ctrl-C; so would what is started here
signal.signal(signal.SIGINT, signal.default_int_handler)


class Runs:
    """Runs on the same images, each in a folder of its own below `root`."""

    def __init__(self, root: Path, *flags: str):
        self.root, self.flags = root, flags
        self.data = write_image_folder(root / "data", train=8, val=4)

    def folder(self, tag: str) -> Path:
        """Return the output folder of a run."""
        return self.root / "RepVGGA0" / tag

    def start(self, tag: str, *flags: str) -> subprocess.Popen:
        """Start a run as the leader of a process group."""
        command = [sys.executable, PROGRAM, "--data", self.data, "--save", self.root, "--tag", tag]
        with open(self.root / f"{tag}.out", "wb") as out:
            return subprocess.Popen(
                [str(part) for part in (*command, *FLAGS, *self.flags, *flags)],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def output(self, tag: str) -> str:
        """Return what the last run of this name has printed."""
        return (self.root / f"{tag}.out").read_text(errors="replace")

    def seconds(self) -> float:
        """Return how long a run takes, after one that was the first on this machine."""
        begun = time.monotonic()
        self.finish("timed")
        return time.monotonic() - begun

    def finish(self, tag: str, *flags: str) -> dict:
        """Run to the end; return its results. Raises RuntimeError where it fails."""
        status = self.start(tag, *flags).wait()
        if status:
            raise RuntimeError(f"exit status {status}:\n{self.output(tag)}")
        return results(self.folder(tag))


def results(folder: Path) -> dict:
    """Return all that must be the same after a run, however often it was interrupted."""
    kept = {name: pickle.loads((folder / name).read_bytes()) for name in ("latest.pkl", "best.pkl")}
    return {**kept, "metrics.csv": (folder / "metrics.csv").read_bytes()}


def equal(a: object, b: object) -> bool:
    """Return whether two results have the same bits."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, np.ndarray):
        return a.dtype == b.dtype and a.tobytes() == b.tobytes()
    return a == b


def descendants(process: subprocess.Popen) -> list[psutil.Process]:
    """Return the processes that a process has started, and that they have."""
    try:
        return psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
