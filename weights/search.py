"""From a set of tensors to the layout and the network that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any, NamedTuple, NoReturn

import models

from utils import UserError

from . import entries
from .entries import Entry
from .keymap import Source, Tensors
from .state import (
    Shapes,
    class_count,
    form_of,
    input_channels,
    misfits,
    shapes_of,
    without_head,
)

FEW = 10  # tensors in which a network with a total stride of 8 differs from one of 32, at most
EVALUATIONS = 60  # of the ways to take one entry, so that a strange file takes seconds only


class ConversionError(UserError):
    """Tensors that are not those of a known network; the message lists them."""


class Renaming(NamedTuple):
    """The tensors of an entry, renamed by the rules of one layout."""

    source: Source
    tensors: Tensors
    dropped: list[str]
    unknown: list[str]  # keys that no rule knows


@dataclass(frozen=True)
class Attempt:
    """An entry, its renamings by the layouts that know the most of its keys, and its network.

    Several renamings are left where families share their keys; the shapes tell them apart.
    """

    entry: Entry
    renamings: list[Renaming]
    network: Network | None

    @property
    def known(self) -> int:
        """Number of the keys that the rules know."""
        return len(self.renamings[0].tensors)

    @property
    def colour_orders(self) -> set[str]:
        """The colour orders of the layouts that the tensors may have, as far as these have one.

        Both, where another framework than that of the layouts has written the tensors.
        """
        framework = _framework(self.entry)
        if framework is not None and all(r.source.pytorch != framework for r in self.renamings):
            return {"RGB", "BGR"}
        arch = self.network.arch if self.network is not None else "*"
        usual = [
            r.source.preprocessing for r in self.renamings if fnmatchcase(arch, r.source.archs)
        ]
        return {preprocessing.color for preprocessing in usual if preprocessing is not None}

    @property
    def is_known(self) -> bool:
        """Whether the rules know more keys than not."""
        return self.known > 0 and self.known >= len(self.renamings[0].unknown)


class Search:
    """The ways to take an entry, with prefixes of its keys or without them."""

    def __init__(self, sources: Sequence[Source], arch: str | None, stride: int | None = None):
        self.sources, self.arch, self.stride = sources, arch, stride
        self.left = EVALUATIONS

    def attempts(self, entry: Entry, views: bool = True) -> list[Attempt]:
        """Return the attempts that found a network, or all of them where none did.

        An entry that is known but for some keys, as of a neck beside a backbone, is taken with one
        prefix less at most; with `views` False it is taken as it is.
        """
        if not entry.tensors or self.left == 0:
            return []
        self.left -= 1
        attempt = self._attempt(entry)
        complete = attempt.is_known and not attempt.renamings[0].unknown
        if attempt.network is not None or complete or not views:
            return [attempt]
        inner: list[Attempt] = []
        for view in entries.views(entry):
            whole = any(a.network is not None and a.entry.path == entry.path for a in inner)
            inner += [] if whole else self.attempts(view, views=not attempt.is_known)
        inner = [inner_one for inner_one in inner if not _loses_the_classifier(attempt, inner_one)]
        fitting = [inner_one for inner_one in inner if inner_one.network is not None]
        return fitting or [attempt, *inner]

    def _attempt(self, entry: Entry) -> Attempt:
        renamings = [Renaming(source, *source.to_ours(entry.tensors)) for source in self.sources]

        def rank(renaming: Renaming) -> tuple[int, int]:
            return len(renaming.unknown), -len(renaming.tensors)

        lowest = min(map(rank, renamings))
        best = [renaming for renaming in renamings if rank(renaming) == lowest]
        best = _of_the_same_framework(best, entry)
        network = None if best[0].unknown else _fitting_network(best, self.arch, self.stride)
        return Attempt(entry, best, network)


def _loses_the_classifier(outer: Attempt, inner: Attempt) -> bool:
    """Return whether an attempt passes over a classifier that the rules know around it."""
    outside, inside = (class_count(a.renamings[0].tensors) for a in (outer, inner))
    return outer.is_known and outside is not None and inside is None


def _framework(entry: Entry) -> bool | None:
    """Return whether PyTorch has written an entry, or MegEngine; None where it does not show.

    Only PyTorch counts the batches of a batch norm, and only MegEngine has kernels with a dimension
    for the groups and biases with four.
    """
    counts = any(key.endswith("num_batches_tracked") for key in entry.dropped)
    has_groups = any(
        tensor.ndim == 5 or (tensor.ndim == 4 and key.endswith(".bias"))
        for key, tensor in entry.tensors.items()
    )
    return counts if counts != has_groups else None


def _of_the_same_framework(renamings: list[Renaming], entry: Entry) -> list[Renaming]:
    """Return the renamings of the framework that wrote an entry, where it shows and one is.

    Where it does not show, those of the likelier one come first.
    """
    framework = _framework(entry)
    if framework is not None:
        same = [renaming for renaming in renamings if renaming.source.pytorch == framework]
        return same or renamings
    likelier = form_of(renamings[0].tensors) == "deploy"  # where MegEngine's biases would show
    return sorted(renamings, key=lambda renaming: renaming.source.pytorch != likelier)


# ---------------------------------------------------------------- layout -> architecture


@dataclass(frozen=True)
class Network:
    """An architecture that renamed tensors may be those of."""

    arch: str
    renaming: Renaming
    stride: int = 32

    @property
    def options(self) -> dict[str, Any]:
        source, tensors = self.renaming.source, self.renaming.tensors
        own = fnmatchcase(self.arch, source.archs)  # not when another family was asked for
        options = source.options(tensors) if own and form_of(tensors) == "train" else {}
        if (channels := input_channels(tensors)) != 3:
            options = {**options, "in_chans": channels}
        return options if self.stride == 32 else {**options, "stride": self.stride}

    @property
    def shapes(self) -> Shapes:
        tensors = self.renaming.tensors
        classes = class_count(tensors)
        shapes = shapes_of(self.arch, classes or 1000, form_of(tensors), **self.options)
        return without_head(shapes, tensors) if classes is None else shapes

    @property
    def problems(self) -> list[str]:
        return misfits(self.renaming.tensors, self.shapes)


def _networks(renamings: list[Renaming], arch: str | None, stride: int) -> dict[str, Network]:
    """Return the networks that the renamings may be, by name, `arch` first."""
    networks = {
        name: Network(name, renaming, stride)
        for renaming in reversed(renamings)
        for name in models.list_models()
        if fnmatchcase(name, renaming.source.archs)
    }
    likely = {
        name: network
        for name, network in networks.items()
        # the deploy form is that of the twin without "-qa"
        if name == arch or name.endswith("-qa") == ("stage0.bn.weight" in network.renaming.tensors)
    }
    # a layout of "-qa" alone has no twins
    return dict(sorted((likely or networks).items(), key=lambda item: item[0] != arch))


def _fitting_network(
    renamings: list[Renaming], arch: str | None, stride: int | None
) -> Network | None:
    """Return the network whose tensors these are, `arch` if it is one of several.

    Where no `stride` is given, the total stride is 32 if that fits, else 8.
    """
    for network in _networks(renamings, arch, stride or 32).values():
        problems = len(network.problems)
        if not problems:
            return network
        if stride is None and problems <= FEW and arch in (None, network.arch):
            other = replace(network, stride=8)
            if not other.problems:
                return other
    return None


def raise_misfit(
    attempt: Attempt,
    path: str | PathLike,
    arch: str | None,
    layouts: Sequence[str],
    stride: int | None = None,
) -> NoReturn:
    """Raise ConversionError with what keeps an entry from being a network of these layouts."""
    first = attempt.renamings[0]
    if not attempt.is_known:
        only = len(layouts) == 1
        raise ConversionError(
            f"{path} is not in {f'layout {layouts[0]!r}' if only else 'any known layout'}: it has "
            f"keys such as {some(first.unknown)}"
            + ("; leave --source out" if only else f"; the layouts are {', '.join(layouts)}")
        )
    assert_numbers(first.tensors, path)
    where = f"{path} ({first.source.title})"
    if first.unknown:
        raise ConversionError(
            f"{where} has tensors that no rule knows: {some(first.unknown)}; leave them out of the "
            "file if they are no part of the network; if they are one, it is none of those that "
            "`python train.py --list-archs` lists"
        )
    networks = _networks(attempt.renamings, arch, stride or 32)
    if stride not in (None, 32):
        where += f" with a total stride of {stride}"
    if arch is not None:
        if arch in networks:
            raise ConversionError(
                f"{where} does not fit {arch}: {some(networks[arch].problems)}; leave the "
                "architecture out to have it recognized"
            )
        where += f" holds no {arch} and"
    nearest = min(networks.values(), key=lambda network: len(network.problems))
    raise ConversionError(
        f"{where} fits no architecture; the nearest is {nearest.arch}, but "
        f"{some(nearest.problems)} (names of this project); give a network that `python train.py "
        "--list-archs` lists, with one linear layer as its classifier or none"
    )


def some(items: list[str]) -> str:
    """Return the first of several names, and how many more there are."""
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(items[:5]) + more


def assert_numbers(tensors: Tensors, path: str | PathLike) -> None:
    """Raise ConversionError for tensors of text or of complex numbers."""
    if odd := [key for key, tensor in tensors.items() if tensor.dtype.kind not in "biuf"]:
        raise ConversionError(f"{path} has tensors that are no real numbers: {some(odd)}")


def assert_fractions(weights: Tensors, path: str | PathLike) -> None:
    """Raise ConversionError for weights of whole numbers, as a quantized network has."""
    if whole := [key for key, tensor in weights.items() if tensor.dtype.kind != "f"]:
        raise ConversionError(
            f"{path} has weights of whole numbers, as of a quantized network: {some(whole)}; give "
            "the float weights"
        )
