"""Other repositories' layouts: recognizing the contents of a file, and exporting ours to one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any, NamedTuple, NoReturn

import models

import numpy as np

from data.transforms import BASECLS, Preprocessing
from utils import UserError

from . import apple, basecls, dingxiaoh, entries, own, port, repghost, repvit, timm
from .entries import Entry
from .files import Contents
from .keymap import Source, Tensors
from .state import Shapes, class_count, form_of, misfits, shapes_of, without_head

SOURCES = (
    basecls.REPVGG,
    dingxiaoh.REPVGG,
    dingxiaoh.REPVGG_PLUS,
    dingxiaoh.QAREPVGG,
    timm.REPVGG,
    own.REPVGG,  # before the port's, whose names are the same but for RepVGGplus
    own.REPVGG_PLUS,
    own.MOBILEONE,
    own.REPVIT,
    own.REPGHOST,
    port.REPVGG,
    port.REPVGG_PLUS,
    apple.MOBILEONE,
    timm.MOBILEONE,
    repghost.REPGHOST,
    repghost.TIMM,
    repvit.THU,
    repvit.TIMM,
)

_EVALUATIONS = 60  # of the ways to take one entry, so that a strange file takes seconds only


class ConversionError(UserError):
    """Tensors that are not those of a known network; the message lists them."""


@dataclass
class Foreign:
    """A recognized checkpoint of another repository, in this project's names and shapes.

    Attributes:
        source: the layout of the file.
        arch, options: name and options of the network for models.create.
        num_classes: length of the logits; 0 where the file holds a backbone without a classifier.
        state_dict: name -> float32 array; a view of the file's array where no change is needed.
        dropped: keys of the file that were left out on purpose.
        entry: name of the set of weights that was taken; others: those of the others.
        contents: what the file holds beside them too.
    """

    source: Source
    arch: str
    options: dict[str, Any]
    num_classes: int
    state_dict: Tensors
    dropped: list[str]
    entry: str
    others: list[str]
    contents: Contents

    @property
    def preprocessing(self) -> Preprocessing:
        """What the source trained and tested this architecture with."""
        size, crop_ratio = self.source.sizes.get(self.arch, (224, 0.875))
        known = self.source.preprocessing or BASECLS  # unknown; the port's, whose names they are
        return replace(known, size=size, crop_ratio=crop_ratio)


def recognize(
    contents: Any,
    path: str | PathLike,
    arch: str | None = None,
    source: str | None = None,
    entry: str | None = None,
) -> Foreign:
    """Return what a file's contents are, told from the names and shapes of their tensors.

    Args:
        contents: what files.read returned, or the tensors alone.
        path: the file, for messages.
        arch, source: architecture and layout that they must be of, where that is known.
        entry: name of the set of weights to take, where the file has several.

    Raises ConversionError when a tensor is unknown, missing or of another shape, or when `arch`,
    `source` or `entry` contradict the contents.
    """
    if not isinstance(contents, Contents):
        contents = Contents(contents)
    attempts = [
        attempt
        for candidate in entries.entries(contents.tree)
        for attempt in _Search(arch, source).attempts(candidate)
    ]
    if not attempts:
        raise ConversionError(f"{path} holds no tensors; give a checkpoint or a state dict")
    if entry is not None:
        attempts = _called(entry, attempts, path)
    fitting = [attempt for attempt in attempts if attempt.network is not None]
    if not fitting:
        _raise_misfit(max(attempts, key=lambda attempt: attempt.known), path, arch, source)
    taken = _preferred(fitting, arch)
    network, renaming = taken.network, taken.network.renaming
    _assert_numbers(renaming.tensors, path)
    if arch not in (None, network.arch):
        raise ConversionError(
            f"{path} holds {network.arch}, but {arch} was asked for; leave the architecture out or "
            f"say {network.arch}"
        )
    shapes = network.shapes
    with np.errstate(over="ignore"):  # the equivalence check refuses infinite weights
        state_dict = {
            key: tensor.reshape(shapes[key]).astype(np.float32, copy=False)
            for key, tensor in renaming.tensors.items()
        }
    return Foreign(
        renaming.source,
        network.arch,
        network.options,
        class_count(state_dict) or 0,
        state_dict,
        taken.entry.dropped + renaming.dropped,
        taken.entry.name,
        [other.entry.name for other in fitting if other is not taken],
        contents,
    )


def export(state_dict: Tensors, arch: str, name: str) -> Tensors:
    """Return a state dict of this project, in either form, in the layout called `name`.

    Raises ConversionError when that layout has no such architecture, or no place for a tensor.
    """
    sources = [source for source in SOURCES if fnmatchcase(arch, source.archs)]
    source = next((source for source in sources if source.name == name), None)
    if source is None:
        names = sorted({source.name for source in sources})
        raise ConversionError(f"{name} has no {arch}; it can be exported as {', '.join(names)}")
    try:
        return source.from_ours(state_dict)
    except KeyError as error:
        raise ConversionError(
            f"{name} has no place for {error.args[0]} of {arch}; export the other form"
        ) from None


# ---------------------------------------------------------------- contents -> entry


def _called(name: str, attempts: list[_Attempt], path: str | PathLike) -> list[_Attempt]:
    """Return the attempts at the entry called `name`."""
    called = [attempt for attempt in attempts if attempt.entry.is_called(name)]
    if not called:
        names = dict.fromkeys(attempt.entry.name for attempt in attempts)
        raise ConversionError(
            f"{path} has no entry {name!r}; those with tensors are {_some([*names])}"
        )
    exact = [attempt for attempt in called if attempt.entry.name == name]
    return exact or called


def _preferred(fitting: list[_Attempt], arch: str | None) -> _Attempt:
    """Return the attempt to take: at the largest entry, and of several at the one to evaluate."""

    def size(attempt: _Attempt) -> tuple[bool, bool, int]:
        tensors = attempt.network.renaming.tensors
        return attempt.network.arch == arch, class_count(tensors) is not None, len(tensors)

    def preference(attempt: _Attempt) -> tuple[int, bool]:
        names = attempt.network.renaming.source.entries
        known = [i for i, name in enumerate(names) if name in attempt.entry.path]
        return (*known, len(names))[0], not attempt.entry.is_averaged

    largest = max(fitting, key=size)
    equal = [
        attempt
        for attempt in fitting
        if attempt.network.arch == largest.network.arch and size(attempt)[:2] == size(largest)[:2]
    ]
    return min(equal, key=preference)


def _assert_numbers(tensors: Tensors, path: str | PathLike) -> None:
    if odd := [key for key, tensor in tensors.items() if tensor.dtype.kind not in "biuf"]:
        raise ConversionError(f"{path} has tensors that are no real numbers: {_some(odd)}")


# ---------------------------------------------------------------- entry -> layout


class _Renaming(NamedTuple):
    """The tensors of an entry, renamed by the rules of one layout."""

    source: Source
    tensors: Tensors
    dropped: list[str]
    unknown: list[str]  # keys that no rule knows


@dataclass(frozen=True)
class _Attempt:
    """An entry, its renamings by the layouts that know the most of its keys, and its network.

    Several renamings are left where families share their keys; the shapes tell them apart.
    """

    entry: Entry
    renamings: list[_Renaming]
    network: _Network | None

    @property
    def known(self) -> int:
        """Number of the keys that the rules know."""
        return len(self.renamings[0].tensors)

    @property
    def is_known(self) -> bool:
        """Whether the rules know more keys than not."""
        return self.known > 0 and self.known >= len(self.renamings[0].unknown)


class _Search:
    """The ways to take an entry, with prefixes of its keys or without them."""

    def __init__(self, arch: str | None, source: str | None):
        self.arch = arch
        self.sources = [s for s in SOURCES if source in (None, s.name)]
        self.left = _EVALUATIONS

    def attempts(self, entry: Entry) -> list[_Attempt]:
        """Return the attempts that found a network, or all of them where none did."""
        if not entry.tensors or self.left == 0:
            return []
        self.left -= 1
        attempt = self._attempt(entry)
        if attempt.network is not None or attempt.is_known:
            return [attempt]
        inner: list[_Attempt] = []
        for view in entries.views(entry):
            whole = any(a.network is not None and a.entry.path == entry.path for a in inner)
            inner += [] if whole else self.attempts(view)
        fitting = [inner_one for inner_one in inner if inner_one.network is not None]
        return fitting or [attempt, *inner]

    def _attempt(self, entry: Entry) -> _Attempt:
        renamings = [_Renaming(source, *source.to_ours(entry.tensors)) for source in self.sources]

        def rank(renaming: _Renaming) -> tuple[int, int]:
            return len(renaming.unknown), -len(renaming.tensors)

        lowest = min(map(rank, renamings))
        best = [renaming for renaming in renamings if rank(renaming) == lowest]
        network = None if best[0].unknown else _fitting_network(best, self.arch)
        return _Attempt(entry, best, network)


# ---------------------------------------------------------------- layout -> architecture


@dataclass(frozen=True)
class _Network:
    """An architecture that renamed tensors may be those of."""

    arch: str
    renaming: _Renaming

    @property
    def options(self) -> dict[str, Any]:
        source, tensors = self.renaming.source, self.renaming.tensors
        own = fnmatchcase(self.arch, source.archs)  # not when another family was asked for
        return source.options(tensors) if own and form_of(tensors) == "train" else {}

    @property
    def shapes(self) -> Shapes:
        tensors = self.renaming.tensors
        classes = class_count(tensors)
        shapes = shapes_of(self.arch, classes or 1000, form_of(tensors), **self.options)
        return without_head(shapes, tensors) if classes is None else shapes

    @property
    def problems(self) -> list[str]:
        return misfits(self.renaming.tensors, self.shapes)


def _networks(renamings: list[_Renaming], arch: str | None) -> dict[str, _Network]:
    """Return the networks that the renamings may be, by name, `arch` first."""
    networks = {
        name: _Network(name, renaming)
        for renaming in reversed(renamings)
        for name in models.list_models()
        # the deploy form is that of the twin without "-qa"
        if fnmatchcase(name, renaming.source.archs)
        and (name == arch or name.endswith("-qa") == ("stage0.bn.weight" in renaming.tensors))
    }
    return dict(sorted(networks.items(), key=lambda item: item[0] != arch))


def _fitting_network(renamings: list[_Renaming], arch: str | None) -> _Network | None:
    """Return the network whose tensors these are, `arch` if it is one of several."""
    networks = _networks(renamings, arch).values()
    return next((network for network in networks if not network.problems), None)


def _raise_misfit(
    attempt: _Attempt, path: str | PathLike, arch: str | None, source: str | None
) -> NoReturn:
    """Say what keeps an entry from being a network."""
    first = attempt.renamings[0]
    if not attempt.is_known:
        what = f"layout {source!r}" if source else "any known layout"
        raise ConversionError(
            f"{path} is not in {what}: it has keys such as {_some(first.unknown)}; "
            f"the layouts are {', '.join(sorted({s.name for s in SOURCES}))}"
        )
    _assert_numbers(first.tensors, path)
    where = f"{path} ({first.source.title})"
    if first.unknown:
        raise ConversionError(f"{where} has tensors that no rule knows: {_some(first.unknown)}")
    networks = _networks(attempt.renamings, arch)
    if arch is not None:
        network = networks.get(arch) or _Network(arch, first)
        raise ConversionError(f"{where} does not fit {arch}: {_some(network.problems)}")
    nearest = min(networks.values(), key=lambda network: len(network.problems))
    raise ConversionError(
        f"{where} fits no architecture; the nearest is {nearest.arch}, "
        f"but {_some(nearest.problems)}"
    )


def _some(items: list[str]) -> str:
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(items[:5]) + more
