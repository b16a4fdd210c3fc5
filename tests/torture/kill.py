"""Kill runs at random moments and resume them: every end has the bits of an uninterrupted run.

    python tests/torture/kill.py [--times 20] [--seed N] [--ngpus N]

Each run is killed by SIGKILL up to three times, and resumed by --resume auto, before it may end.
"""

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

import psutil

from tests.torture.small import Runs, descendants, equal


def kill_and_resume(runs: Runs, tag: str, rng: random.Random, seconds: float) -> int:
    """Kill a run and resume it; return the number of kills. Raises RuntimeError for a wrong end."""
    kills = 0
    for _ in range(rng.randint(1, 3)):
        process = runs.start(tag, "--resume", "auto")
        time.sleep(rng.uniform(0, seconds))
        others = descendants(process)
        kills += process.poll() is None
        process.kill()
        process.wait()
        if psutil.wait_procs(others, timeout=10)[1]:
            raise RuntimeError("processes are left after a kill")
    left = list(runs.folder(tag).glob(".*.tmp"))
    if not equal(runs.finish(tag, "--resume", "auto"), runs.straight):
        raise RuntimeError("the end has other bits than that of an uninterrupted run")
    if any(file.exists() for file in left):
        raise RuntimeError(f"{left[0].name} is left")
    return kills


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--ngpus", default="1")
    args = parser.parse_args()
    print(f"kill.py --times {args.times} --seed {args.seed} --ngpus {args.ngpus}", flush=True)
    kills = failures = 0
    with tempfile.TemporaryDirectory() as root:
        runs = Runs(Path(root), "--ngpus", args.ngpus)
        runs.straight = runs.finish("straight")
        seconds = runs.seconds()
        for index in range(args.times):
            try:
                rng = random.Random(f"{args.seed} {index}")
                kills += kill_and_resume(runs, f"run{index}", rng, seconds)
            except RuntimeError as error:
                failures += 1
                print(f"FAILED: run {index}: {error}", flush=True)
    print(f"{args.times} runs, {kills} kills, {args.times - failures} ends with the same bits")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
