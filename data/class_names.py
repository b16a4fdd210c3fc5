"""Names of classes: ImageNet's, in English, and those of classes that have numbers alone."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path


def imagenet_classes() -> dict[str, str]:
    """Return WordNet identifier -> English name of the 1,000 classes of ILSVRC 2012.

    They are in class order, which is the sorted order of the identifiers. The names "crane" and
    "maillot" stand for two classes each.
    """
    lines = (Path(__file__).parent / "imagenet_classes.tsv").read_text().splitlines()
    return dict(line.split("\t") for line in lines)


def in_english(classes: list[str] | None, num_classes: int) -> list[str]:
    """Return the names of a network's classes in English.

    `classes` are the names that its checkpoint holds; ImageNet's identifiers among them become
    words. Without them, 1,000 classes are taken to be ImageNet's, and others are numbered.
    """
    names = imagenet_classes()
    return [names.get(name, name) for name in classes or numbered_classes(num_classes)]


def with_wnids(names: list[str]) -> list[str]:
    """Return ImageNet's identifiers for its 1,000 English names in class order, else `names`.

    A name may go on with synonyms behind a comma, as in "tench, Tinca tinca". Sources differ in a
    few names, so that nine tenths of them decide.
    """
    imagenet = imagenet_classes()
    if len(names) != len(imagenet):
        return names
    first = (name.split(",")[0].strip().casefold() for name in names)
    same = sum(a == b.casefold() for a, b in zip(first, imagenet.values(), strict=True))
    return list(imagenet) if same > 0.9 * len(imagenet) else names


def numbered_classes(count: int) -> list[str]:
    """Return names of classes that have numbers only; 1,000 are taken to be ImageNet's."""
    wnids = list(imagenet_classes())
    return wnids if count == len(wnids) else [str(label) for label in range(count)]


def are_numbers(texts: Iterable[str]) -> bool:
    """Return whether all labels are numbers."""
    return all(re.fullmatch(r"-?\d{1,18}", text) for text in texts)
