"""Read damaged checkpoints, images and ONNX files: each gives a sentence or a result.

    python tests/torture/mutate.py [--files 10000] [--seed N] [--first N] [--keep DIR]

A failure is a crash, any other exception than UserError, a message of several lines, more than 5
seconds of processor time, or code in a file that was executed. It is named by its number: the same
--seed with --first NUMBER --files 1 repeats it, and --keep DIR keeps the file.
"""

import argparse
import json
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

SECONDS = 5.0  # of processor time
PATIENCE = 60.0  # seconds by the clock, on a busy machine


# ---------------------------------------------------------------- the process that reads


def read_files(folder: Path, seed: int, first: int, stop: int) -> None:
    """Damage and read files, and print a line of JSON before and after each."""
    import numpy as np

    from data import decoding, jpeg
    from deployment import network
    from tests.torture import mutations
    from utils import UserError

    os.chdir(folder)  # so that a file's content does not depend on the folder's name
    originals = Path("originals")
    originals.mkdir(exist_ok=True)
    files = mutations.write_originals(originals)
    contents = [file.read_bytes() for file in files]
    picture = np.zeros((40, 40, 3), np.uint8)

    def read(path: Path, number: int) -> str:
        if path.suffix[1:] in mutations.IMAGES:
            if number % 2:
                return f"an image of {decoding.decode(path).shape}"
            part = decoding.decode_crop(path, lambda *sides: jpeg.Box(0, 0, *sides), 32)
            return f"a part of {part.shape}"
        net = network.load(path)
        return f"class {int(net.probabilities(net.prepare(picture)[None]).argmax())}"

    for number in range(first, stop):
        rng = random.Random(f"{seed} {number}")
        index = rng.randrange(len(files))
        canary = Path(f"executed-{number}")
        path = Path(f"{number}-{files[index].name}")
        path.write_bytes(mutations.mutated(contents[index], rng, rng.choice(contents), canary))
        print(json.dumps({"number": number, "file": path.name}), flush=True)
        begun, outcome = time.process_time(), {}
        try:
            outcome["result"] = read(path, number)
        except UserError as error:
            outcome["sentence"] = str(error)
        except Exception as error:
            outcome["exception"] = f"{type(error).__name__}: {error}"
        outcome["seconds"] = time.process_time() - begun
        outcome["executed"] = canary.exists()
        print(json.dumps(outcome), flush=True)


# ---------------------------------------------------------------- the process that watches


class Reader:
    """A process that reads files from number `first` on."""

    def __init__(self, folder: Path, seed: int, first: int, stop: int):
        numbers = map(str, (seed, first, stop))
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--reader", folder, *numbers],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders complain there
        )

    def lines(self) -> Iterator[dict | None]:
        """Yield what it prints; None at its end or when nothing has come for a long time."""
        buffer = b""
        while True:
            while b"\n" in buffer:
                line, _, buffer = buffer.partition(b"\n")
                if line.startswith(b"{"):
                    yield json.loads(line)
            ready = select.select([self.process.stdout], [], [], PATIENCE)[0]
            chunk = os.read(self.process.stdout.fileno(), 1 << 16) if ready else b""
            if not chunk:
                self.process.kill()
                self.process.wait()
                yield None
                return
            buffer += chunk


def fault(outcome: dict | None, status: int | None) -> str | None:
    """Return what is wrong with the outcome of a file, or None."""
    if outcome is None:
        return f"the process ended or stalled (exit status {status})"
    if outcome["executed"]:
        return "code in the file was executed"
    if "exception" in outcome:
        return outcome["exception"]
    if len(outcome.get("sentence", "").splitlines()) > 1:
        return f"several lines: {outcome['sentence']!r}"
    if outcome["seconds"] > SECONDS:
        return f"{outcome['seconds']:.1f} s of processor time"
    return None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", type=int, default=10000)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--keep", type=Path)
    args = parser.parse_args()
    print(f"mutate.py --files {args.files} --seed {args.seed} --first {args.first}", flush=True)
    counts: Counter[str] = Counter()
    slowest = 0.0
    number, stop = args.first, args.first + args.files
    with tempfile.TemporaryDirectory() as temporary:
        while number < stop:
            reader = Reader(Path(temporary), args.seed, number, stop)
            lines = reader.lines()
            while number < stop and (begun := next(lines)) is not None:
                outcome = next(lines)
                path = Path(temporary, begun["file"])
                wrong = fault(outcome, reader.process.returncode)
                kind = "failures" if wrong else "results" if "result" in outcome else "sentences"
                counts[kind] += 1
                slowest = max(slowest, outcome["seconds"] if outcome else 0.0)
                if wrong:
                    print(f"FAILED: {begun['file']}: {wrong}", flush=True)
                    if args.keep:
                        args.keep.mkdir(parents=True, exist_ok=True)
                        (args.keep / path.name).write_bytes(path.read_bytes())
                path.unlink()
                number += 1
                if outcome is None:
                    break
            else:
                if number < stop:  # it ended before it had begun a file
                    print("FAILED: the reading process does not start", flush=True)
                    return 1
            reader.process.kill()
    print(
        f"{args.files} files: {counts['results']} results, {counts['sentences']} sentences, "
        f"{counts['failures']} failures; the slowest took {slowest:.1f} s"
    )
    return 1 if counts["failures"] else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--reader"]:
        read_files(Path(sys.argv[2]), *map(int, sys.argv[3:]))
    else:
        sys.exit(main())
