"""The sets of tensors in a file: where they are nested, and which one is meant.

An entry is a dict of arrays anywhere in the tree, or those of its arrays whose keys have a prefix
in common, such as "teacher.". Its name is the path to it, such as "model.state_dict".
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from data.foreign import is_module
from data.unpickle import UnsuitableError

from .keymap import Tensors

ROOT = "."  # name of the entry at the top of a file
MMENGINES_RAW = "ema_state_dict"  # mmengine swaps the two: in its files these are the raw weights

# Last parts of the keys of arrays that count something and are no weights.
COUNTERS = {
    *("num_batches_tracked", "total_ops", "total_params", "n_averaged", "num_updates"),
    *("steps", "step", "initted", "decay"),
}
# Prefixes that stand before a part of the keys alone: a backbone's, but not its classifier's.
_PARTS = ("backbone", "encoder", "features", "trunk", "body", "base_model", "feature_extractor",
          "_orig_mod", "module", "model", "net", "network")  # fmt: skip
_AVERAGED = re.compile(r"(?:^|[^a-z])(?:ema|averaged?|avg|swa|teacher|shadow|momentum)(?:$|[^a-z])")
# timm.create_model(..., features_only=True) flattens the names of sequences: stages_0 for stages.0
_FLATTENED = re.compile(r"^(stem|stages|blocks)_(\d+)\.")
_DEEPEST = 100  # levels of dicts and lists
_PLACES = 8  # in which one dict of arrays counts as a set of weights
_SMALL = 10  # tensors: what is smaller is a part of no network
_SMALLEST = 20  # MobileOneS0's train form has 12 times as many tensors as its deploy form


@dataclass(frozen=True)
class Entry:
    """A set of tensors.

    Attributes:
        path: keys that lead to it.
        tensors: name -> array.
        dropped: keys that were left out: counters, and what stands beside the weights.
    """

    path: tuple[str, ...]
    tensors: Tensors
    dropped: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """What --entry calls it."""
        return ".".join(self.path) or ROOT

    @property
    def is_averaged(self) -> bool:
        """Whether its name says that it holds averaged weights; mmengine's names do so in turn."""
        return any(_AVERAGED.search(part.lower()) for part in self.path)

    @property
    def is_numeric(self) -> bool:
        """Whether its arrays are of real numbers."""
        return all(tensor.dtype.kind in "biuf" for tensor in self.tensors.values())

    def is_called(self, name: str) -> bool:
        """Return whether `name` is its name, or some of the keys that lead to it."""
        return f".{name}." in f".{self.name}." or (name == ROOT and not self.path)


def entries(tree: Any) -> list[Entry]:
    """Return the dicts of arrays in a tree, the largest first.

    Those with less than a `_SMALLEST`th of its tensors are left out. Raises
    unpickle.UnsuitableError for a tree that is nested deeper than any checkpoint is.
    """
    every = sorted(_entries(tree, (), (), Counter()), key=lambda entry: -len(entry.tensors))
    return [entry for entry in every if _SMALLEST * len(entry.tensors) >= len(every[0].tensors)]


def _entries(
    tree: Any, path: tuple[str, ...], above: tuple[int, ...], seen: Counter[int]
) -> Iterator[Entry]:
    """Yield the dicts of arrays; `seen` counts how often each container was met.

    What is in a container that stands in several places is searched once: the time would double
    with each level otherwise.
    """
    if id(tree) in above or seen[id(tree)] == _PLACES or is_module(tree):
        return
    if len(path) > _DEEPEST:
        raise UnsuitableError(
            f"has dicts and lists that are nested more than {_DEEPEST} deep, as in no checkpoint; "
            "save the state dict alone"
        )
    seen[id(tree)] += 1
    if isinstance(tree, dict):
        named = {_text(key): value for key, value in tree.items()}
        arrays = {key: v for key, v in named.items() if key is not None and is_tensor(v)}
        if arrays:
            yield _without_counters(Entry(path, arrays))
        inner = [(key, value) for key, value in tree.items()]
    elif isinstance(tree, list | tuple):
        inner = [(str(i), value) for i, value in enumerate(tree)]
    else:
        return
    if seen[id(tree)] > 1:
        return
    for key, value in inner:
        if isinstance(value, dict | list | tuple):
            yield from _entries(value, (*path, _text(key) or str(key)), (*above, id(tree)), seen)


def _text(key: Any) -> str | None:
    if isinstance(key, bytes):
        return key.decode("latin1")
    return key if isinstance(key, str) else None


def is_tensor(value: Any) -> bool:
    """Return whether a value is an array, and not what stands in for an array of objects."""
    return isinstance(value, np.ndarray | np.generic) and np.shape(value) != (0,)


def _without_counters(entry: Entry) -> Entry:
    """Return the entry without counters, and without arrays beside the weights: keys without a dot.

    The name of a weight has a dot, as each belongs to a layer.
    """
    dotted = any("." in key for key in entry.tensors)
    kept = {
        key: tensor
        for key, tensor in entry.tensors.items()
        if key.rpartition(".")[2] not in COUNTERS and ("." in key or not dotted)
    }
    dropped = [key for key in entry.tensors if key not in kept]
    return replace(entry, tensors=kept, dropped=[*entry.dropped, *dropped])


def views(entry: Entry) -> Iterator[Entry]:
    """Yield the ways to take an entry with a prefix less, and then those with two less, and so on.

    Names of timm's feature extractors come first. A prefix that not all keys have is removed in two
    ways: the others stay as they are, as where a
    backbone has one and the classifier has none; or they are dropped.
    """
    flat = {_FLATTENED.sub(r"\1.\2.", key): tensor for key, tensor in entry.tensors.items()}
    if flat.keys() != entry.tensors.keys():
        yield replace(entry, tensors=flat)
    groups: dict[str, Tensors] = {}
    for key, tensor in entry.tensors.items():
        head, dot, rest = key.partition(".")
        if dot:
            groups.setdefault(head, {})[rest] = tensor
    for head, count in Counter({head: len(group) for head, group in groups.items()}).most_common():
        if count < _SMALL:
            return
        others = {k: v for k, v in entry.tensors.items() if not k.startswith(f"{head}.")}
        if others and head in _PARTS and not others.keys() & groups[head].keys():
            yield replace(entry, tensors={**groups[head], **others})
        path = (*entry.path, head) if others else entry.path
        yield Entry(path, groups[head], [*entry.dropped, *others])
