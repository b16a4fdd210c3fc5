"""The command line of a kit's classify.py: classify images on a board, or measure its speed.

This file is copied into the kits: it needs numpy and OpenCV alone, and Python 3.7.
"""

from __future__ import annotations

import argparse
import json
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import cv2
import numpy as np
import pixels

_KEYS = {"name", "model", "size", "short_side", "resize_backend", "interpolation", "color", "mean",
         "std", "classes"}  # fmt: skip
_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class BoardError(Exception):
    """An error that the user can correct; the message says how."""


def main(open_board: Callable, threads: Sequence[int] = (1,)) -> int:
    """Run the command line and return the exit status.

    Args:
        open_board: function (model path, network) -> object with `prepare(crop)`, which makes an
            input of uint8 BGR [size, size, 3], `run(input)`, which returns the logits, and `batch`,
            the number of images that the compiled network computes in one call.
        threads: numbers of threads that call `run` at a time in a measurement.
    """
    parser = argparse.ArgumentParser(description="Classify images on this board.")
    add = parser.add_argument
    add("images", nargs="*", metavar="IMAGE", help="image files or folders")
    add("--model", help="compiled network (default: the one that network.json names)")
    add("--top", type=int, default=5, metavar="N", help="number of classes to print (default: 5)")
    add("--save", metavar="FOLDER", help="folder to write the images to, with the classes on them")
    add("--letterbox", action="store_true",
        help="show the network the whole image with grey bars, instead of the centre crop on which "
        "its accuracy is measured")  # fmt: skip
    add("--bench", action="store_true", help="measure latency and frames/s")
    add("--frames", type=int, default=200, metavar="N",
        help="number of calls of a measurement, of one frame each unless the network is compiled "
        "for more (default: 200)")  # fmt: skip
    args = parser.parse_args()
    stream: Any  # a TextIOWrapper, which the stubs do not say
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # None where it is closed, as by >&-
            stream.reconfigure(errors="backslashreplace")  # for names that cannot be shown
    if not args.images and not args.bench:
        parser.error("give images, or --bench")
    if args.top < 1 or args.frames < 1:
        parser.error("--top and --frames must be at least 1")
    folder = Path(__file__).resolve().parent
    try:
        network = read_network(folder / "network.json")
        model = Path(args.model or folder / network["model"])
        if not model.is_file():
            raise BoardError(f"there is no {model}; compile it as README.txt says, or give --model")
        board = _open(open_board, str(model), network)
        if args.bench:
            _measure(board, network, args.frames, threads)
        files = [file for name in args.images for file in _files(Path(name))]
        pairs = _with_targets(files, args.save)
        bad = [pair for pair in pairs if not _classify(board, network, args, *pair)]
    except BoardError as error:
        print(f"classify.py: error: {error}", file=sys.stderr)
        return 2
    return 2 if bad else 0


def read_network(file: Path) -> dict[str, Any]:
    """Return the content of network.json; raise BoardError where it is of no kit."""
    try:
        network = json.loads(file.read_text(encoding="utf-8"))
        missing = _KEYS - network.keys()
    except (OSError, ValueError, AttributeError):
        raise BoardError(f"cannot read {file}; copy it from the kit, beside classify.py") from None
    if missing:
        raise BoardError(f"{file} has no {min(missing)}; copy all files of one kit")
    return network


def _open(open_board: Callable, model: str, network: dict[str, Any]) -> Any:
    """Return the board's network; the errors of the runtimes are of many kinds."""
    try:
        return open_board(model, network)
    except BoardError:
        raise
    except Exception as error:
        raise BoardError(
            f"the runtime cannot load {model} ({error}); compile it for this board, as README.txt "
            "says"
        ) from None


def _run(board: Any, prepared: np.ndarray) -> np.ndarray:
    """Return the logits; the errors of the runtimes are of many kinds."""
    try:
        return board.run(prepared)
    except BoardError:
        raise
    except Exception as error:
        raise BoardError(
            f"the runtime failed on an input of {prepared.dtype} {list(prepared.shape)} ({error}); "
            "compile the network of this kit as README.txt says"
        ) from None


def assert_side(found: Sequence[int], network: dict[str, Any]) -> None:
    """Raise BoardError unless (height, width) of the compiled network are those of the kit."""
    (height, width), side = found, network["size"]
    if (height, width) != (side, side):
        raise BoardError(
            f"the compiled network takes images of {height} x {width}, and this kit is for "
            f"{side} x {side}; give --model the network of this kit"
        )


def _assert_classes(logits: np.ndarray, network: dict[str, Any]) -> None:
    """Raise BoardError unless the compiled network has the classes of the kit."""
    found, expected = np.size(logits), len(network["classes"])
    if found != expected:
        raise BoardError(
            f"the compiled network has {found} outputs, and this kit is for {expected} classes; "
            "give --model the network of this kit"
        )


def _files(path: Path) -> list[Path]:
    """Return the images of a folder, or the file itself."""
    try:
        if not path.is_dir():
            return [path]
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)
    except OSError as error:
        raise BoardError(f"cannot read the folder {path}: {error.strerror}") from None
    if not files:
        raise BoardError(f"there are no images in {path}; give files such as {path}/photo.jpg")
    return files


def _with_targets(files: list[Path], folder: str | None) -> list[tuple[Path, Path | None]]:
    """Return each image with a file of its own in a folder, or with None without a folder."""
    if not folder:
        return [(file, None) for file in files]
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BoardError(f"cannot write to the folder {folder}: {error.strerror}") from None
    unique = len({file.stem for file in files}) == len(files)
    names = (f.stem if unique else f"{number:04d}_{f.stem}" for number, f in enumerate(files))
    return [(file, Path(folder, f"{next(names)}-labelled.png")) for file in files]


def _classify(
    board: Any, network: dict[str, Any], args: argparse.Namespace, file: Path, target: Path | None
) -> bool:
    """Print the best classes of an image; returns whether it could be read."""
    image = pixels.read_image(file)
    if image is None:
        print(f"classify.py: error: cannot read the image {file}", file=sys.stderr)
        return False
    start = perf_counter()
    crop = pixels.letterbox if args.letterbox else pixels.evaluation_crop
    prepared = board.prepare(crop(image, network))
    middle = perf_counter()
    logits = _run(board, prepared)
    end = perf_counter()
    _assert_classes(logits, network)
    try:
        best = pixels.best_classes(logits, args.top)
    except ValueError as error:
        raise BoardError(f"{error}; compile it anew") from None
    lines = [f"{p:7.2%}  {i:4}  {_printable(network['classes'][i])}" for i, p in best]
    print(file)
    print("\n".join(lines))
    times = (middle - start, end - middle, perf_counter() - end)
    before, within, after = (1000 * seconds for seconds in times)
    print(
        f"pre-processing {before:.2f} ms, inference {within:.2f} ms, post-processing {after:.2f} ms"
    )
    if target is not None:
        picture = cv2.imencode(".png", pixels.with_lines(image, lines))[1]
        try:
            target.write_bytes(picture.tobytes())
        except OSError as error:
            raise BoardError(f"cannot write {target}: {error.strerror}") from None
    return True


def _printable(name: str) -> str:
    """Return a name without characters that a terminal obeys."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in name)


def _measure(board: Any, network: dict[str, Any], frames: int, threads: Sequence[int]) -> None:
    """Print the mean latency of `run` and the frames/s for each number of threads."""
    size = network["size"]
    prepared = board.prepare(np.full((size, size, 3), 127, np.uint8))
    _assert_classes(_run(board, prepared), network)
    calls = f"{frames} calls of {board.batch} frames" if board.batch > 1 else f"{frames} frames"
    print(f"{network['name']}: {calls}, input prepared once")
    for count in threads:
        latencies: list[float] = []
        failures: list[Exception] = []
        arguments = board, prepared, -(-frames // count), latencies, failures
        workers = [threading.Thread(target=_call_often, args=arguments) for _ in range(count)]
        start = perf_counter()
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        seconds = perf_counter() - start
        if failures:
            raise BoardError(
                f"the runtime failed with {count} thread{'s' * (count > 1)} ({failures[0]})"
            )
        mean = 1000 * sum(latencies) / len(latencies)
        rate = board.batch * len(latencies) / seconds
        print(f"{count} thread{'s' * (count > 1)}: {mean:.2f} ms, {rate:.2f} frames/s")


def _call_often(
    board: Any,
    prepared: np.ndarray,
    number: int,
    latencies: list[float],
    failures: list[Exception],
) -> None:
    """Call `run` a number of times, and append the seconds of each call, or what it raises."""
    try:
        for _ in range(number):
            start = perf_counter()
            board.run(prepared)
            latencies.append(perf_counter() - start)
    except Exception as error:  # of many kinds; a thread would print its traceback
        failures.append(error)
