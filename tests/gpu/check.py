"""Everything that needs a GPU, run once: `make gpu-check`, in 10 minutes at most.

Prints a table to paste into an issue. Needs one GPU that MegEngine runs on, and two for the checks
of several workers, which are skipped else. `--stand-in` runs the same on tests/gpu/stand_in.py,
without a GPU, so that the script itself is known to work.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import math
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

STAND_IN = str(ROOT / "tests" / "gpu" / "stand_in.py")
# seconds for all checks, and for one; the stand-ins have no limit
TOTAL, EACH = 560.0, 150.0
BEST = r"best top-1 [\d.]+ %"


class Failed(Exception):
    """A check that failed; the message says how."""


class Checks:
    """The checks, and a row of the table for each that has been done."""

    def __init__(self, folder: Path, gpus: int, stand_in: bool):
        self.folder, self.gpus, self.stand_in = folder, gpus, stand_in
        self.total, self.each = (math.inf, 3600.0) if stand_in else (TOTAL, EACH)
        self.end = time.monotonic() + self.total
        self.rows: list[tuple[str, str, str, str]] = []
        self.data = folder / "images"
        self.save = folder / "checkpoints"

    def python(self, *arguments: object) -> list[str]:
        stand_in = [STAND_IN] if self.stand_in else []
        return [sys.executable, "-u", *stand_in, *map(str, arguments)]

    def limit(self) -> float:
        """Return the seconds that the next command may take."""
        return max(1.0, min(self.each, self.end - time.monotonic()))

    def run(self, expected: str, *arguments: object) -> str:
        """Run a command; returns the part of its output that matches `expected`."""
        limit = self.limit()
        try:
            process = subprocess.run(
                self.python(*arguments),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {limit:.0f} s") from None
        match = re.search(expected, process.stdout)
        if process.returncode or match is None:
            last = process.stdout.strip().splitlines()[-1:] or ["no output"]
            raise Failed(f"status {process.returncode}: {last[0]}")
        return match.group()

    def train(self, tag: str, *flags: object, expected: str = BEST) -> str:
        return self.run(expected, *self.command(tag), *flags)

    def command(self, tag: str) -> list[object]:
        shared = ["--save", self.save, "--tag", tag, "--epochs", 1, "--print-freq", 1]
        return ["train.py", *shared, "--size", 32, "--batch-size", 128]  # 11 steps on the digits

    def killed_and_resumed(self) -> str:
        """Kill a run of two workers by SIGKILL, and go on with it."""
        command = [*self.command("killed"), "--ngpus", 2, "--save-freq", 2]
        process = subprocess.Popen(
            self.python(*command), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
        late = threading.Timer(self.limit(), process.kill)
        late.start()
        reached = any("step 5/" in line for line in process.stdout)
        late.cancel()
        process.kill()
        started = time.monotonic()
        try:
            process.communicate(timeout=20)  # until the last worker has ended
        except subprocess.TimeoutExpired:
            raise Failed("workers still run 20 s after the SIGKILL") from None
        if not reached:
            raise Failed("the run did not come to step 5")
        seconds = time.monotonic() - started
        resumed = self.run("resuming .* after step [0-9]+", *command, "--resume", "auto")
        step = resumed.split()[-1]
        return f"all workers ended {seconds:.1f} s after the SIGKILL; resumed after step {step}"

    def exported(self) -> str:
        best, file = self.save / "RepVGGA0" / "one" / "best.pkl", self.folder / "one.onnx"
        self.run("", "export.py", "--model", best, "--out", file)
        return self.run("relative error .*", "tests/gpu/compare.py", best, file)

    def all(self) -> list[tuple[str, int, Callable[[], str]]]:
        """Return the name, the number of GPUs and the function of each check."""
        images = ["--data", self.data, "--batch-size", 32]
        best = self.save / "RepVGGA0" / "one" / "best.pkl"
        amp, dtr = ["--amp"], ["--dtr", "1GB"]
        return [
            ("training on the digits", 1, lambda: self.train("one")),
            ("training on an image folder", 1, lambda: self.train("folder", *images)),
            ("mixed precision, --amp", 1, lambda: self.train("amp", *amp)),
            ("rematerialization, --dtr", 1, lambda: self.train("dtr", *dtr)),
            ("exported file and the GPU's logits", 1, self.exported),
            ("test.py", 1, lambda: self.run(r"top-1 [\d.]+ %", "test.py", "--model", best)),
            ("two workers on the digits", 2, lambda: self.train("two", "--ngpus", 2)),
            ("two workers on an image folder", 2,
             lambda: self.train("folder2", *images, "--ngpus", 2)),
            ("two workers, --sync-bn", 2, lambda: self.train("sync", "--ngpus", 2, "--sync-bn")),
            ("two workers, --amp --sync-bn", 2,
             lambda: self.train("amp2", "--ngpus", 2, "--amp", "--sync-bn")),
            ("resuming after SIGKILL", 2, self.killed_and_resumed),
            ("test.py --ngpus 2", 2,
             lambda: self.run(r"top-1 [\d.]+ %", "test.py", "--model", best, "--ngpus", 2)),
        ]  # fmt: skip

    def do(self) -> bool:
        """Do all checks; returns whether none failed."""
        for name, needed, check in self.all():
            started, seconds = time.monotonic(), ""
            if needed > self.gpus:
                result, note = "skipped", f"needs {needed} GPUs"
            elif started > self.end:
                result, note = "FAILED", f"not begun within {self.total:.0f} s"
            else:
                try:
                    result, note = "passed", check()
                except Failed as failed:
                    result, note = "FAILED", str(failed)
                seconds = f"{time.monotonic() - started:.0f}"
            self.rows.append((name, result, seconds, note.replace("|", "/")))
            print(f"{result:7} {name}: {note}", file=sys.stderr, flush=True)
        return all(result != "FAILED" for _, result, _, _ in self.rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--stand-in", action="store_true", help="run without a GPU, on stand_in.py")
    stand_in = parser.parse_args().stand_in
    os.environ["PYTHONPATH"] = str(ROOT)
    if stand_in:
        os.environ["MGE_DEFAULT_DEVICE"] = "cpu0"
    from models import gpus  # after the device has been named

    from tests.support import write_image_folder

    devices = [gpus.GPU("stand-in", "none")] * 2 if stand_in else list(gpus.visible())
    unsupported = [gpu for gpu in devices if not gpu.is_supported and not stand_in]
    if not devices or unsupported:
        reason = gpus.refusal(unsupported[0]) if unsupported else "CUDA's driver shows no GPU here"
        print(f"gpu-check: error: {reason}; nothing was run", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as folder:
        os.environ["STAND_IN_FOLDER"] = folder
        checks = Checks(Path(folder), len(devices), stand_in)
        write_image_folder(checks.data, train=32, val=10)
        passed = checks.do()
    versions = [f"{name} {importlib.metadata.version(name)}" for name in ("megengine", "numpy")]
    print(f"GPUs: {'; '.join(map(str, devices))}\n")
    print(f"{', '.join(versions)}, Python {platform.python_version()}, {platform.platform()}\n")
    print("| check | result | seconds | note |\n| --- | --- | --- | --- |")
    for row in checks.rows:
        print("| " + " | ".join(row) + " |")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
