"""Measure the training data pipeline against MegEngine's own and a usual one of Pillow.

All three read the same files, decode, crop at random, resize, flip, normalize and stack batches of
float32 [B, 3, size, size], in turns in one run. Images/s per core are images per second of
processor time, which other programs on the machine hardly change. The two others run in processes
without this project's memory settings (models.environment), which would speed them up too.
"""

from __future__ import annotations

import functools
import io
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from unittest import mock

import numpy as np
import psutil

from data import readers
from data.augment import Augmentation, crop_box
from data.datasets import Dataset
from data.decoding import BadImageError, ImageFile, read
from data.loader import Loader
from data.transforms import TORCHVISION, Preprocessing
from utils import UserError, shown

from .own_process import own_process


@dataclass(frozen=True)
class Measurement:
    """Times of one pass of a variant over the images: elapsed and processor time in seconds."""

    images: int
    seconds: float
    processor_seconds: float


# (dataset, preprocessing, batch size, epoch) -> batches
Pipeline = Callable[[Dataset, Preprocessing, int, int], Iterator]


def find_images(source: str | Path, count: int) -> Dataset:
    """Return a data set of `count` images of a folder or archive, taken evenly from all of them.

    If there are fewer, files are repeated. Raises UserError when there are none.
    """
    files = readers.find_images(source)
    if not files:
        raise UserError(f"there are no images under {source}; give data that has some in it")
    step = max(1, len(files) // count)
    files = [files[i * step % len(files)] for i in range(count)]
    return Dataset(Path(source).name, files, np.zeros(count, np.int32), ["any"], Augmentation())


def find_same_images(sources: Sequence[str], count: int) -> dict[str, Dataset]:
    """Return source -> data set of `count` validation images, the same ones in different forms.

    If there are fewer, they are repeated. Raises UserError when the numbers of images differ.
    """
    whole = {source: readers.open_dataset(source, "val") for source in sources}
    first = sources[0]
    for source, dataset in whole.items():
        if len(dataset) != len(whole[first]):
            raise UserError(
                f"{first} has {len(whole[first])} validation images and {source} {len(dataset)}; "
                "give the same images in several forms"
            )
    step = max(1, len(whole[first]) // count)
    chosen = [i * step % len(whole[first]) for i in range(count)]
    return {source: dataset.subset(chosen) for source, dataset in whole.items()}


def variants(workers: int) -> dict[str, Pipeline]:
    """Return name -> pipeline; those without a number of workers run in one process."""
    pipelines: dict[str, Pipeline] = {"Pillow": _pillow, "MegEngine": _megengine}
    for count in sorted({0, workers}):
        name = f"ours, {count} worker{'s' * (count > 1)}" if count else "ours"
        pipelines[name] = functools.partial(ours, workers=count)
    return pipelines


def ours(
    dataset: Dataset, preprocessing: Preprocessing, batch_size: int, epoch: int, workers: int = 0
) -> Iterator:
    """Yield batches of this project's pipeline."""
    return Loader(dataset, preprocessing, batch_size, workers).training(0, epoch)


def _pillow(
    dataset: Dataset, preprocessing: Preprocessing, batch_size: int, epoch: int
) -> Iterator:
    """Yield batches of a usual pipeline: decode, random resized crop, flip, normalize, stack."""
    from PIL import Image

    size = preprocessing.size
    mean = np.array(preprocessing.mean, np.float32)[:, None, None] / 255
    std = np.array(preprocessing.std, np.float32)[:, None, None] / 255
    rng = np.random.default_rng(epoch)

    def sample(file: ImageFile) -> np.ndarray:
        try:
            image = Image.open(io.BytesIO(read(file))).convert("RGB")
        except (OSError, ValueError, SyntaxError):  # as Pillow raises
            raise _unreadable(file, "Pillow") from None
        box = crop_box(image.height, image.width, (0.08, 1), rng)
        image = image.crop((box.left, box.top, box.left + box.width, box.top + box.height))
        image = image.resize((size, size), Image.Resampling.BILINEAR)
        if rng.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        array = np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))
        return (array.astype(np.float32) / 255 - mean) / std

    order = rng.permutation(len(dataset))
    for start in range(0, len(order) - batch_size + 1, batch_size):
        batch = order[start : start + batch_size]
        yield np.stack([sample(dataset.images[i]) for i in batch]), dataset.labels[batch]


def _unreadable(file: object, library: str) -> BadImageError:
    return BadImageError(
        f"{library} cannot decode the image {shown(file)}; give images without it, or in JPEG"
    )


def _megengine(
    dataset: Dataset, preprocessing: Preprocessing, batch_size: int, _epoch: int
) -> Iterator:
    """Yield batches of MegEngine's DataLoader and transforms, run in this process.

    OpenCV reads the files, as in MegEngine's ImageFolder.
    """
    import cv2
    from megengine.data import DataLoader, RandomSampler
    from megengine.data.dataset import Dataset as MapDataset
    from megengine.data.transform import (
        Compose,
        Normalize,
        RandomHorizontalFlip,
        RandomResizedCrop,
        ToMode,
    )

    class Files(MapDataset):
        def __init__(self):
            super().__init__()

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            content = np.frombuffer(read(dataset.images[index]), np.uint8)
            image = cv2.imdecode(content, cv2.IMREAD_COLOR)
            if image is None:
                raise _unreadable(dataset.images[index], "OpenCV")
            return image, 0

        def __len__(self) -> int:
            return len(dataset)

    mean, std = preprocessing.mean[::-1], preprocessing.std[::-1]  # it keeps OpenCV's BGR
    transforms = [
        RandomResizedCrop(preprocessing.size),
        RandomHorizontalFlip(),
        Normalize(mean, std),
        ToMode("CHW"),
    ]
    sampler = RandomSampler(files := Files(), batch_size, drop_last=True)
    yield from DataLoader(files, sampler, Compose(transforms))


def measure(
    runs: dict[str, tuple[Pipeline, Dataset]],
    size: int,
    batch_size: int,
    batches: int,
    rounds: int,
    after_pass: Callable[[], object] = lambda: None,
) -> dict[str, list[Measurement]]:
    """Measure `rounds` passes of each pipeline over `batches` batches of its data set.

    The pipelines take turns, each in its own process; `after_pass` is called after every pass.
    """
    preprocessing = replace(TORCHVISION, size=size)  # as new networks are trained
    results = {name: [] for name in runs}
    with ExitStack() as stack:
        call = {name: _start(stack, name) for name in runs}
        for epoch in range(rounds):
            for name, (pipeline, dataset) in runs.items():
                arguments = (
                    pipeline, dataset, preprocessing, batch_size, epoch, batches
                )  # fmt: skip
                results[name].append(call[name](_pass, *arguments))
                after_pass()
    return results


def _start(stack: ExitStack, name: str) -> Callable[..., Measurement]:
    """Start the process that the pipeline `name` is to run in; returns what calls functions in it.

    Only this project's pipeline runs with its memory settings, which are for CPUs alone: the device
    "xpux" of the others turns them off.
    """
    device = {} if name.startswith("ours") else {"MGE_DEFAULT_DEVICE": "xpux"}
    with mock.patch.dict(os.environ, device):
        call = stack.enter_context(own_process(name))
        call(os.getpid)  # wait until it has started
    return call


def _pass(
    pipeline: Pipeline,
    dataset: Dataset,
    preprocessing: Preprocessing,
    batch_size: int,
    epoch: int,
    count: int,
) -> Measurement:
    """Measure a pass over `count` batches without the first, during which workers start."""
    batches = pipeline(dataset, preprocessing, batch_size, epoch)
    images = 0
    with warnings.catch_warnings(), closing(batches):
        warnings.simplefilter("ignore", DeprecationWarning)  # MegEngine's, about plasma
        next(batches)
        start, processor = time.perf_counter(), _processor_seconds()
        for batch, _ in islice(batches, count - 1):  # not to the end, where workers exit
            images += len(batch)
        used = _processor_seconds() - processor
        return Measurement(images, time.perf_counter() - start, used)


def _processor_seconds() -> float:
    """Return the processor time of this process and its children in seconds."""
    times = [child.cpu_times() for child in psutil.Process().children()]
    return time.process_time() + sum(child.user + child.system for child in times)


def summary(results: dict[str, list[Measurement]]) -> list[dict]:
    """Return a row per variant: images/s, images/s per core and its ratio to the first variant's.

    Images/s and images/s per core are medians over the passes.
    """
    rows = []
    for name, passes in results.items():
        per_core = [measured.images / measured.processor_seconds for measured in passes]
        rows.append(
            {
                "variant": name,
                "images_per_second": statistics.median(
                    measured.images / measured.seconds for measured in passes
                ),
                "per_core": statistics.median(per_core),
                "slowest": min(per_core),
                "fastest": max(per_core),
                "times_first": 0.0,
            }
        )
    for row in rows:
        row["times_first"] = row["per_core"] / rows[0]["per_core"]
    return rows
