"""Which label each class of a data set has: its position among the classes of a network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from utils import UserError, say_once, shown

from .class_names import are_numbers, imagenet_classes, numbered_classes
from .datasets import Dataset


def with_class_order(dataset: Dataset, num_classes: int, classes: list[str] | None) -> Dataset:
    """Return `dataset` with the labels that a network of `num_classes` classes uses.

    The network's own class names decide where its checkpoint has them. Otherwise, for a network
    with 1,000 classes, folders with ImageNet's WordNet identifiers get ImageNet's labels, and
    folders with numbers are these labels, as in ImageNetV2; other folders get labels in sorted
    order, and there must be `num_classes` of them.

    Raises UserError when the classes do not fit.
    """
    if dataset.numbered:
        return _with_numbers(_named(dataset, classes), num_classes, classes)
    order = classes
    wnids = list(imagenet_classes())
    if are_imagenets_labels(dataset, num_classes, classes):
        numbers = np.array([int(name) for name in dataset.classes])
        return _with_numbers(replace(dataset, labels=numbers[dataset.labels]), num_classes, classes)
    if order is None:
        imagenet = num_classes == len(wnids) and set(dataset.classes) <= set(wnids)
        order = wnids if imagenet else dataset.classes
        if are_numbers(order) and sorted(order, key=int) != list(order):
            say_once(
                f"warning: the class folders of {dataset.name} are numbers, and are taken in the "
                f"order of their texts, {', '.join(order[:3])} ..., as PyTorch's ImageFolder takes "
                "them; give --class-names where the network has them in another order"
            )
    index = positions(dataset.classes, order)
    if not index and list(order) == wnids:  # folders may have the English names instead
        words = {word.casefold(): i for i, word in enumerate(imagenet_classes().values())}
        found = {name: words.get(name.split(",")[0].strip().casefold()) for name in dataset.classes}
        index = {name: i for name, i in found.items() if i is not None}
    strangers = [name for name in dataset.classes if name not in index]
    if strangers or len(order) != num_classes:
        detail = f", and does not know {strangers[0]!r}" if strangers and classes else ""
        raise UserError(
            f"the data set {dataset.name} has {len(dataset.classes)} classes, but the network was "
            f"trained on {num_classes}{detail}; give the data it was trained for"
        )
    new = np.array([index[name] for name in dataset.classes], np.int32)
    return replace(dataset, labels=new[dataset.labels], classes=list(order))


def in_imagenets_order(dataset: Dataset) -> Dataset:
    """Return `dataset` with ImageNet's labels where its class folders are called 0 to 999."""
    numbers = dataset.classes if are_numbers(dataset.classes) else ()
    if dataset.numbered or sorted(map(int, numbers)) != list(range(1000)):
        return dataset
    return with_class_order(dataset, 1000, None)


def are_imagenets_labels(dataset: Dataset, num_classes: int, classes: list[str] | None) -> bool:
    """Return whether the names of the classes are ImageNet's labels, 0 to 999, for a network."""
    wnids = list(imagenet_classes())
    fits = num_classes == len(wnids) and classes in (None, wnids)
    return fits and are_numbers(dataset.classes)


def positions(names: Iterable[str], order: Sequence[str]) -> dict[str, int]:
    """Return the positions in `order` of the names that are there; 7, 07 and 007 are the same."""
    index = {name: i for i, name in enumerate(order)}
    found = {name: index[name] for name in names if name in index}
    values = _values(order)
    if values is None:
        return found
    numbers = {name: int(name) for name in names if name not in index and are_numbers([name])}
    return found | {name: values[n] for name, n in numbers.items() if n in values}


def _values(names: Sequence[str]) -> dict[int, int] | None:
    """Return number -> position of names that are all different numbers; None for others."""
    if not are_numbers(names):
        return None
    values = {int(name): i for i, name in enumerate(names)}
    return values if len(values) == len(names) else None


def _named(dataset: Dataset, classes: Sequence[str] | None) -> Dataset:
    """Return the data set with positions in `classes` instead of labels that are class names.

    That is so where all names are numbers, other ones than their positions, as of the folders 1,
    10 and 2, and each label is a name. Where the labels may also be positions, it is said.
    """
    values = None if classes is None else _values(classes)
    different = {*np.unique(dataset.labels).tolist()}
    if classes is None or values is None or not different <= values.keys():
        return dataset
    other = next((label for label in sorted(different) if values[label] != label), None)
    if other is None:
        return dataset
    if max(different) < len(classes):
        say_once(
            f"warning: the classes of the network are numbers, and the labels of {dataset.name} "
            f"are taken for their names, not for their positions: the label {other} for the class "
            f"{classes[values[other]]!r}, not for {classes[other]!r}"
        )
    new = [values[label] for label in dataset.labels.tolist()]
    return replace(dataset, labels=np.array(new, np.int32))


def _with_numbers(dataset: Dataset, num_classes: int, classes: list[str] | None) -> Dataset:
    odd = np.flatnonzero((dataset.labels < 0) | (dataset.labels >= num_classes))
    if len(odd):
        worst = int(odd[-1])
        raise UserError(
            f"the image {shown(dataset.names[worst])} of {dataset.name} has the label "
            f"{dataset.labels[worst]}, but there are the classes 0 to {num_classes - 1}, in the "
            "order of their sorted names; give labels that count so"
        )
    labels = dataset.labels.astype(np.int32, copy=False)
    return replace(dataset, labels=labels, classes=classes or numbered_classes(num_classes))
