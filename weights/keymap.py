"""Renaming the tensors of another repository's checkpoints to ours and back, by rules as data."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from data.transforms import Preprocessing

Tensors = dict[str, np.ndarray]
Rules = tuple[tuple[str, str], ...]

# {n} and {i}: numbers; {n-1}: a number that is one less than n; {i<12}: one below 12;
# any other name, such as {p}: text
_PLACEHOLDER = re.compile(r"\{(\w+)(?:([+-]\d+)|<(\d+))?\}")

# blocks with the same names there and here
BLOCKS: Rules = (("stage0.", "stage0."), ("stage{n}.{i}.", "stage{n}.{i}."))


@dataclass(frozen=True)
class Source:
    """Layout of another repository's checkpoints, for networks that exist here too.

    Attributes:
        name: value of --source and --export; a repository with several families has a Source for
            each, all of one name.
        title: name of the repository, for people.
        archs: shell pattern of the architectures that have this layout.
        rules: pairs of templates (their key, our key); the first that matches decides.
        preprocessing: what its networks were trained with, None where the layout does not tell;
            size and crop ratio of each published one are in the catalog.
        copies: pairs of templates (their key, another of theirs): the first is dropped where
            the second stands beside it.
        pytorch: whether kernels of grouped convolutions are [O, I/G, kh, kw] and biases [O], as
            PyTorch has them, instead of [G, O/G, I/G, kh, kw] and [1, O, 1, 1].
        prepare: changes tensors in their names, before they are renamed to ours.
        finish: changes tensors in our names, after they were renamed.
        restore: changes tensors in their names, after they were renamed from ours.
        options: keyword arguments of models.create, from the renamed tensors of a train form.
        entries: names of sets of weights in one file, the one that its own evaluation uses first;
            of others, averaged weights come first.
    """

    name: str
    title: str
    archs: str
    rules: Rules
    preprocessing: Preprocessing | None
    copies: Rules = ()
    pytorch: bool = True
    prepare: Callable[[Tensors], Tensors] = dict
    finish: Callable[[Tensors], Tensors] = dict
    restore: Callable[[Tensors], Tensors] = dict
    options: Callable[[Tensors], dict[str, Any]] = lambda ours: {}
    entries: tuple[str, ...] = ()

    def to_ours(self, tensors: Tensors) -> tuple[Tensors, list[str], list[str]]:
        """Return the renamed tensors, the keys dropped on purpose, and the keys without a rule."""
        ours: Tensors = {}
        dropped: list[str] = []
        unknown: list[str] = []
        tensors = self.prepare(tensors)
        for key, tensor in tensors.items():
            if translate(key, self.copies) in tensors:
                dropped.append(key)
            elif (name := translate(key, self.rules)) is not None:
                ours[name] = tensor
            else:
                unknown.append(key)
        return self.finish(ours), dropped, unknown

    def from_ours(self, state_dict: Tensors) -> Tensors:
        """Return our state dict in their names and shapes; raise KeyError for an unknown name."""
        backwards = tuple((ours, theirs) for theirs, ours in self.rules)
        theirs = {}
        for key, tensor in state_dict.items():
            name = translate(key, backwards)
            if name is None:
                raise KeyError(key)
            theirs[name] = _pytorch_shape(tensor) if self.pytorch else tensor
            if self.pytorch and name.endswith(".running_var"):  # PyTorch counts batches beside it
                counter = name.removesuffix("running_var") + "num_batches_tracked"
                theirs[counter] = np.zeros((), np.int64)
        return self.restore(theirs)


def product(*tables: Rules) -> Rules:
    """Return a rule for every combination of one pair of each table, joined to one pair."""
    rules: Rules = (("", ""),)
    for table in tables:
        rules = tuple((a + c, b + d) for a, b in rules for c, d in table)
    return rules


def translate(key: str, rules: Iterable[tuple[str, str]]) -> str | None:
    """Return `key` renamed by the first rule whose left side matches, or None."""
    for left, right in rules:
        if not key.startswith(_beginning(left)):  # most rules are passed over by this alone
            continue
        values = _match(left, key)
        if values is not None:
            name = _render(right, values)
            if name is not None:
                return name
    return None


def _pytorch_shape(tensor: np.ndarray) -> np.ndarray:
    if tensor.ndim == 5:  # [G, O/G, I/G, kh, kw] -> [O, I/G, kh, kw]
        return tensor.reshape(-1, *tensor.shape[2:])
    if tensor.ndim == 4 and tensor.shape[0] == 1 and tensor.shape[2:] == (1, 1):  # a bias
        return tensor.reshape(-1)
    return tensor


@cache
def _beginning(template: str) -> str:
    return template.partition("{")[0]


@cache
def _compile(template: str) -> tuple[re.Pattern, tuple[tuple[str, int, int, bool], ...]]:
    """Return what a key must match, and (name, offset, limit, is a number) of each placeholder."""
    placeholders, pattern, end = [], "", 0
    for placeholder in _PLACEHOLDER.finditer(template):
        name, offset, limit = placeholder.groups()
        number = name in ("n", "i")
        pattern += re.escape(template[end : placeholder.start()])
        pattern += r"(\d+)" if number else "(.+)"
        placeholders.append((name, int(offset or 0), int(limit or 0), number))
        end = placeholder.end()
    return re.compile(pattern + re.escape(template[end:])), tuple(placeholders)


def _match(template: str, key: str) -> dict[str, Any] | None:
    """Return the placeholders' values, int or str, when `key` has the form of `template`."""
    pattern, placeholders = _compile(template)
    match = pattern.fullmatch(key)
    if match is None:
        return None
    values: dict[str, Any] = {}
    for (name, offset, limit, number), text in zip(placeholders, match.groups(), strict=True):
        values[name] = int(text) - offset if number else text
        if number and (values[name] < 0 or (limit and values[name] >= limit)):
            return None
    return values


def _render(template: str, values: dict[str, Any]) -> str | None:
    """Return `template` filled in, or None when a number is outside its limits."""
    allowed = True

    def fill(placeholder: re.Match) -> str:
        nonlocal allowed
        name, offset, limit = placeholder.groups()
        value = values[name]
        if offset:
            value += int(offset)
        allowed = allowed and not (limit and value >= int(limit)) and not (offset and value < 0)
        return str(value)

    text = _PLACEHOLDER.sub(fill, template)
    return text if allowed else None
