"""The measurements of `benchmark.py`, one function for each of its sub-commands.

Each takes the parsed arguments and returns the title and the rows of its table. What a measurement
needs is imported by it, so that the others run where that is not installed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from tqdm import tqdm

import utils

from . import report
from .report import Rows

if TYPE_CHECKING:
    from training.distributed.process_group import Workers

    from .inference.candidates import Network
    from .inference.turns import Settings
    from .training_step import Point


class Incomplete(utils.UserError):
    """The failure of a network behind others; `rows` are those that were measured before."""

    def __init__(self, message: str, rows: Rows):
        super().__init__(message)
        self.rows = rows


def time_inference(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure every network with every batch size and number of threads."""
    from .inference.latency import inference

    def measure(network: Network, settings: Settings) -> Rows:
        with progress() as bar:
            return inference(
                network, args.size, args.batch, args.threads, settings, args.int8, bar.update
            )

    rows = of_each_network(args, args.batch, measure)
    peaks = (
        f"{max(row['peak_gflops'] for row in rows if row['threads'] == count):.0f} with {count}"
        for count in args.threads
    )
    return (
        f"inference, {rounds(args)} of {args.seconds:g} s; the peak is that of float32 "
        f"matrix products, GFLOP/s: {', '.join(peaks)} thread(s)"
    ), rows


def draw_networks(args: argparse.Namespace, rows: Rows) -> None:
    """Write the pictures of all networks that --scatter and --forms name."""
    from . import pictures

    for path, draw in ((args.scatter, pictures.scatter), (args.forms, pictures.forms)):
        if path:
            picture = draw(rows)
            utils.write_atomically(path, lambda file, content=picture: file.write(content))


def time_throughput(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure every network with every number of streams."""
    from .inference.throughput import throughput

    def measure(network: Network, settings: Settings) -> Rows:
        with progress() as bar:
            return throughput(network, args.size, args.streams, settings, args.int8, bar.update)

    rows = of_each_network(args, [1], measure)
    return f"single frames, {rounds(args)} of {args.seconds:g} s", rows


def of_each_network(
    args: argparse.Namespace, batches: list[int], measure: Callable[[Network, Settings], Rows]
) -> Rows:
    """Return the rows of all networks.

    Raises Incomplete where one fails behind others, and UserError where the first one does.
    """
    rows: Rows = []
    try:
        for network, settings in networks(args, batches):
            rows += measure(network, settings)
    except utils.UserError as error:
        raise Incomplete(str(error), rows) if rows else error from None
    return rows


def networks(args: argparse.Namespace, batches: list[int]) -> Iterator[tuple[Network, Settings]]:
    """Yield each network with its settings; print to stderr which variants are left out."""
    from .inference import candidates
    from .inference.turns import Settings

    for arch in args.arch or ([None] if args.model else ["RepVGGA0"]):
        network = candidates.load(arch, args.model, args.entry)
        if args.int8:
            candidates.check_int8(args.int8, network, args.size, batches)
        for variant, reason in candidates.left_out(network).items():
            print(f"{network.arch}: {variant} left out: {reason}", file=sys.stderr)
        yield network, Settings(args.rounds, args.seconds, tuple(args.variants))


def rounds(args: argparse.Namespace) -> str:
    """Return the number of rounds in words: "1 round", "3 rounds"."""
    return f"{args.rounds} round{'s' * (args.rounds > 1)}"


def progress(total: int | None = None, unit: str = "turn") -> tqdm:
    """Return a progress bar, which is shown on a terminal only."""
    return tqdm(total=total, unit=unit, leave=False, disable=None)


def time_training(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure a training step at each point in each variant."""
    if args.against == "pytorch":
        return time_against_pytorch(args)
    from . import training_step

    rows, variants = [], training_step.all_variants()
    with progress(len(args.point) * args.rounds * len(variants), "step") as bar:
        for at in points(args):
            seconds = training_step.seconds_per_step(at, args.rounds, variants, bar.update)
            rows += training_step.summary(at, seconds)
    return f"training step, median of {args.rounds}, one process", rows


def time_against_pytorch(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure a training step of this project and of PyTorch at each point."""
    from . import against_pytorch

    counts, all_points = args.threads or [1], points(args)
    for threads in counts:  # before anything takes minutes
        for at in all_points:
            against_pytorch.check(at, threads)
    rows = []
    total = len(counts) * len(all_points) * args.rounds * len(against_pytorch.VARIANTS)
    with progress(total, "step") as bar:
        for threads in counts:
            for at in all_points:
                rows += against_pytorch.measure(at, threads, args.rounds, args.avx2, bar.update)
    return f"training step, median of {args.rounds}, a process each on the same cores", rows


def points(args: argparse.Namespace) -> list[Point]:
    """Return the points that --arch and --point name."""
    from .training_step import Point

    return [Point(arch or args.arch, size, batch) for arch, size, batch in args.point]


def measure_memory(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure the peak memory of a training step at each point."""
    from . import training_step

    rows = [row for at in points(args) for row in training_step.memory_of_steps(at, args.rounds)]
    return (
        f"peak memory of a process and time of a step, median of {rounds(args)}, a process each"
    ), rows


def time_workers(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure a step of the training loop at each point with each number of workers."""
    from . import workers

    rows = [row for at in points(args) for row in workers.measure(at, args.workers, args.rounds)]
    return f"a step of the training loop, median of {rounds(args)}", rows


def time_all_reduce(args: argparse.Namespace, workers: Workers) -> int:
    """Measure the all-reduce of gradients as one of `workers`; returns the exit status."""
    from . import all_reduce

    rows = all_reduce.measure(args.arch, args.rounds, workers)
    if workers.rank == 0:
        title = f"all-reduce of the gradients, median of {rounds(args)}"
        report.write_report(args, title, rows, report.LAYOUTS[args.command])
    return 0


def time_data(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure every data pipeline on the same images."""
    from . import data_pipeline

    batches = args.images // args.batch_size
    if batches < 2:
        raise utils.UserError(
            f"--images {args.images} is less than two batches of {args.batch_size}, of which the "
            "first is left out; give more images or a smaller --batch-size"
        )
    count = batches * args.batch_size
    if len(args.data) == 1:
        dataset = data_pipeline.find_images(args.data[0], count)
        runs = {
            name: (pipeline, dataset)
            for name, pipeline in data_pipeline.variants(args.workers or 2).items()
        }
        title = dataset.name
    else:
        same = data_pipeline.find_same_images(args.data, count)
        runs = {f"ours, {data}": (data_pipeline.ours, same[data]) for data in args.data}
        title = "the same images in several forms"
    with progress(args.rounds * len(runs), "pass") as bar:
        rows = data_pipeline.summary(
            data_pipeline.measure(
                runs, args.size, args.batch_size, batches, args.rounds, bar.update
            )
        )
    return (
        f"{title}, {args.size} px, batches of {args.batch_size}: images/s, and images/s of "
        f"processor time of a core, median of {rounds(args)}"
    ), rows


def measure_int8(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure every network in float and in every int8 scheme."""
    from . import int8

    with progress(len(args.model), "network") as bar:
        rows = int8.measure(args, bar.update)
    return (
        f"{rows[0]['calibration_images']} images of {args.calibration} for calibration, "
        f"{rows[0]['test_images']} of {args.data} for the test; images/s of single images on one "
        "thread"
    ), rows


def measure_nv12(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure the accuracy for each way from an image to the network."""
    from weights import stated_preprocessing

    from . import nv12

    with progress(unit="image") as bar:
        rows = nv12.accuracy(args.model, args.data, stated_preprocessing.of_flags(args), bar.update)
    return f"{rows[0]['arch']} in float, images of {args.data}", rows


def measure_rknn(args: argparse.Namespace) -> tuple[str, Rows]:
    """Measure the accuracy of every kit with each choice of ranges."""
    from . import rknn

    count = len([*rknn.runs(args.kit, args.algorithms)])
    if not count:
        raise utils.UserError(
            "there is nothing to measure: --algorithms names none, and the kits have no file of "
            "quantize.py --target rknn; give an algorithm or put such a file into a kit"
        )
    with progress(count, "conversion") as bar:
        rows = rknn.accuracy(
            args.kit, args.algorithms, args.python, args.target, args.images, bar.update
        )
    toolkit = rows[0]["toolkit"] or "unknown"
    return f"{args.target} in the simulator of rknn-toolkit2 {toolkit}", rows


MEASUREMENTS: dict[str, Callable[[argparse.Namespace], tuple[str, Rows]]] = {
    "infer": time_inference,
    "throughput": time_throughput,
    "train": time_training,
    "memory": measure_memory,
    "workers": time_workers,
    "data": time_data,
    "int8": measure_int8,
    "nv12": measure_nv12,
    "rknn": measure_rknn,
}
