"""Classify images, many at a time, in order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from data import caption, sources
from data.decoding import BadImageError, ImageFile

from .network import Network

BATCH = 16  # images that a network computes at once
_KEPT = 2  # where the images are kept as well, of which a large one takes 50 MB
_AHEAD = 2  # batches that are read while the network computes another
_THREADS = 2  # that read and resize images

T = TypeVar("T")


@dataclass
class Result:
    """What became of one image.

    Attributes:
        name: file or URL of the image.
        image: the image, uint8 BGR [H, W, 3], no larger than `caption` draws it, where it was asked
            for.
        error: sentence about an image that cannot be read.
        predictions: the best classes: "class", "name" and "probability" of each.
    """

    name: ImageFile
    image: np.ndarray | None = None
    error: str | None = None
    predictions: list[dict[str, Any]] = field(default_factory=list)


def classify(
    net: Network, names: Sequence[ImageFile], top: int, keep_images: bool = False
) -> Generator[Result, None, None]:
    """Yield the `top` best classes of each image, in the order of `names`.

    Close the generator to read no more images. Raises UserError when the network computes a number
    that is not finite.
    """

    def read(name: ImageFile) -> tuple[Result, np.ndarray | None]:
        try:
            image = sources.read(name)
        except BadImageError as error:
            return Result(name, error=str(error)), None
        kept = caption.fitted(image) if keep_images else None  # a photograph may have 100 MB
        return Result(name, kept), net.prepare(image)

    with closing(_read_ahead(names, read, _KEPT if keep_images else BATCH)) as batches:
        for batch in batches:
            inputs = [prepared for _, prepared in batch if prepared is not None]
            if inputs:
                _fill_in(net, [r for r, x in batch if x is not None], np.stack(inputs), top)
            yield from (result for result, _ in batch)


def _read_ahead(
    names: Sequence[ImageFile], read: Callable[[ImageFile], T], size: int
) -> Generator[list[T], None, None]:
    """Yield what `read` returns of the names, `size` at a time, while threads read the next."""
    starts = iter(range(0, len(names), size))
    under_way: deque[list[Future[T]]] = deque()
    pool = ThreadPoolExecutor(_THREADS)
    try:
        while True:
            while len(under_way) < _AHEAD and (start := next(starts, None)) is not None:
                batch = names[start : start + size]
                under_way.append([pool.submit(read, name) for name in batch])
            if not under_way:
                return
            yield [future.result() for future in under_way.popleft()]
    finally:
        pool.shutdown(cancel_futures=True)


def _fill_in(net: Network, results: list[Result], inputs: np.ndarray, top: int) -> None:
    """Set the predictions of results to the classes of their inputs [N, C, H, W]."""
    classes = net.classes
    for result, probabilities in zip(results, net.probabilities(inputs), strict=True):
        result.predictions = [
            {"class": int(i), "name": classes[i], "probability": float(probabilities[i])}
            for i in np.argsort(-probabilities, kind="stable")[:top]
        ]
