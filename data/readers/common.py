"""What the readers share: from samples in any order to a data set in the order of all others."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils import UserError, shown

from ..augment import Augmentation
from ..class_names import numbered_classes
from ..datasets import Dataset
from ..folders import LeftOut, is_hidden, is_image
from ..members import Members

_MOST_CLASSES = 1_000_000


class Sample(NamedTuple):
    """An image with its label: the name of a class, or a number.

    Attributes:
        label: name of the class, or its number.
        name: name of the image below its class.
        at: position among the images of its source.
    """

    label: str | int
    name: str
    at: int


def ordered(
    samples: Iterable[Sample],
    images: Sequence[Path] | Members,
    source: Path,
    split: str,
    left_out: LeftOut,
    whole: bool = False,
) -> Dataset:
    """Return the data set of some samples, ordered by class and name as class folders are.

    Args:
        samples: at least one; all labels are names, or all are numbers.
        images: what `Sample.at` counts.
        source: the folder or archive, which gives the set its name.
        split, left_out, whole: see Dataset.

    Raises UserError for a number that is no label.
    """
    # a folder's files come in the order of their paths' parts, not of their paths' letters
    rows = sorted(samples, key=lambda sample: (sample.label, sample.name.replace("/", "\0")))
    numbered = isinstance(rows[0].label, int)
    if numbered:
        numbers = [int(row.label) for row in rows]
        for row in (rows[0], rows[-1]):
            if not 0 <= int(row.label) < _MOST_CLASSES:
                raise UserError(
                    f"the image {shown(row.name)} of {shown(source)} has the label {row.label}, "
                    f"but labels are numbers from 0 to {_MOST_CLASSES - 1}; number the classes "
                    "from 0, in the order of their sorted names"
                )
        classes = numbered_classes(numbers[-1] + 1)
    else:
        names = sorted({str(row.label) for row in rows})
        position = {name: number for number, name in enumerate(names)}
        numbers = [position[str(row.label)] for row in rows]
        classes = [shown(name) for name in names]
    indices = [row.at for row in rows]
    return Dataset(
        shown(source.resolve().name),
        images.take(indices) if isinstance(images, Members) else [images[i] for i in indices],
        np.array(numbers, np.int32),
        classes,
        Augmentation(),
        folder=source,
        split=split,
        left_out=left_out,
        names=[f"{row.label}/{row.name}" for row in rows],
        numbered=numbered,
        whole=whole,
    )


def components(name: str) -> list[str]:
    """Return the parts of a path within an archive."""
    return [part for part in name.split("/") if part not in ("", ".", "..")]


def image_paths(names: Sequence[str], left_out: LeftOut) -> dict[int, list[str]]:
    """Return position -> parts of its path, for the names of images; count the others."""
    paths = {}
    for index, name in enumerate(names):
        parts = components(name)
        if any(map(is_hidden, parts)):
            left_out.hidden += 1
        elif is_image(name):
            paths[index] = parts
        else:
            left_out.add_file(name)
    return paths
