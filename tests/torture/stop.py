"""Stop runs at random moments, as Ctrl-C and batch systems do, and resume them.

    python tests/torture/stop.py [--times 50] [--seed N] [--ngpus N]

Each run gets a signal at a random moment, sent to its process group or to all of its processes. It
must save, say so and leave no process behind, and end with the same bits after it was resumed.
"""

import argparse
import collections
import os
import random
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import psutil

from tests.torture.small import Runs, descendants, equal

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
FINISHED = "had finished"
BOOT = 0.15  # seconds in which Python itself starts, and a signal ends it as any program


def stop_once(runs: Runs, tag: str, rng: random.Random, seconds: float, straight: dict) -> str:
    """Stop a run once and resume it; return what happened, "FAILED: ..." where it is wrong."""
    number, to_all, delay = rng.choice(NUMBERS), rng.random() < 0.5, rng.uniform(0, seconds)
    process = runs.start(tag)
    with suppress(subprocess.TimeoutExpired):
        process.wait(timeout=delay)
    others = descendants(process)
    for target in others if to_all else []:
        with suppress(psutil.NoSuchProcess):
            target.send_signal(number)
    if process.poll() is None:
        os.killpg(process.pid, number)
    status = process.wait()
    said = runs.output(tag)
    where = f"{tag}, {number.name} to {'all' if to_all else 'the group'} after {delay:.2f} s"
    if psutil.wait_procs(others, timeout=5)[1]:
        return f"FAILED: {where}: processes are left"
    last = (said.strip().splitlines() or [""])[-1]
    if status == 0 or (status == -number and last.startswith("best top-1")):
        outcome = FINISHED  # the line is the last of a run; Python itself ends after it
    elif status == 128 + number:
        if f"stopped by {number.name} after step" not in last or "; saved " not in last:
            return f"FAILED: {where}: {last}"
        outcome = "stopped, saved and said so"
    elif status == -number and delay < BOOT and not runs.folder(tag).exists():
        outcome = "was ended before it had begun"
    else:
        return f"FAILED: {where}: exit status {status}:\n{said}"
    if not equal(runs.finish(tag, "--resume", "auto"), straight):
        return f"FAILED: {where}: other bits after it was resumed"
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=50)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--ngpus", default="1")
    args = parser.parse_args()
    print(f"--times {args.times} --seed {args.seed} --ngpus {args.ngpus}", flush=True)
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as root:
        runs = Runs(Path(root), "--ngpus", args.ngpus)
        straight = runs.finish("straight")
        seconds, index = runs.seconds(), 0
        # a run that had finished does not count
        while index - counts[FINISHED] < args.times and index < 4 * args.times:
            rng = random.Random(f"{args.seed} {index}")
            outcome = stop_once(runs, f"run{index}", rng, seconds, straight)
            if outcome.startswith("FAILED"):
                print(outcome, flush=True)
            counts[outcome.partition(":")[0]] += 1
            index += 1
    print(f"runs of {seconds:.1f} s: " + ", ".join(f"{n} {what}" for what, n in counts.items()))
    return 1 if counts["FAILED"] else 0


if __name__ == "__main__":
    sys.exit(main())
