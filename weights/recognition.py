"""Recognizing the contents of a file in another repository's layout."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from os import PathLike
from typing import Any

import numpy as np

from data import foreign, unpickle
from data.transforms import BASECLS

from . import (
    catalog,
    chenyaofo,
    dingxiaoh,
    entries,
    layouts,
    mmpretrain,
    replknet,
    stated_preprocessing,
    total_stride,
)
from .files import Contents
from .keymap import Source, Tensors
from .search import (
    Attempt,
    ConversionError,
    Network,
    Renaming,
    Search,
    assert_fractions,
    assert_numbers,
    raise_misfit,
    some,
)
from .state import class_count, form_of

Fit = tuple[entries.Entry, Network]  # an entry whose tensors are those of a network


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
        colour_orders: those of the layouts that the tensors may have.
        note: what was assumed, as the tensors do not tell it, or None.
    """

    source: Source
    arch: str
    options: dict[str, Any]
    num_classes: int
    state_dict: Tensors
    dropped: list[str]
    entry: str = entries.ROOT
    others: list[str] = field(default_factory=list)
    colour_orders: set[str] = field(default_factory=set)
    note: str | None = None

    def add_note(self, note: str | None) -> None:
        """Say one thing more of what was assumed."""
        self.note = _joined(self.note, note)

    @property
    def habit(self) -> stated_preprocessing.Statements:
        """What the source trained and tested this architecture with."""
        stride = self.options.get("stride", 32)
        published = catalog.published(self.source.name, self.arch, self.num_classes, stride)
        name = self.arch if published is None else published.name
        usual = self.source.preprocessing or BASECLS
        publisher = self.source.title.partition(",")[0]
        origin = f"assumed: {publisher}'s for {name}"
        if self.source.preprocessing is None:
            origin = "assumed: as is usual with MegEngine"
        if published is None:
            return stated_preprocessing.of_habit(replace(usual, size=224, crop_ratio=0.875), origin)
        usual = replace(usual, size=published.size, crop_ratio=published.crop_ratio)
        if published.mean is not None and published.std is not None:
            usual = replace(usual, mean=published.mean, std=published.std)
        habit = stated_preprocessing.of_habit(usual, origin)
        if published.classes is not None:
            habit["classes"] = [*published.classes], origin
        return habit

    def crop_ratio(self, size: Any) -> tuple[float, str]:
        """Return the crop ratio for images of this side, and where it is from."""
        usual, (published, _) = self.habit["crop_ratio"], self.habit["size"]
        if self.is_for_warped_images(size):
            return 1.0, "assumed: images of this side are not cropped by the source"
        if usual[0] == 1 and isinstance(size, int) and size < published > 224:
            return 0.875, "assumed: usual for images smaller than the source's"
        return usual

    def is_for_warped_images(self, size: Any) -> bool:
        """Return whether the source's evaluation warps images to this side and crops nothing."""
        return self.source is replknet.PYTORCH and type(size) is int and size >= replknet.WARPED

    @property
    def tells_colour_order(self) -> bool:
        """Whether all repositories that may have written the file have the same colour order."""
        return self.source.preprocessing is not None and len(self.colour_orders) == 1


def recognize(
    contents: Any,
    path: str | PathLike,
    arch: str | None = None,
    source: str | None = None,
    entry: str | None = None,
    stride: int | None = None,
) -> Foreign:
    """Return what a file's contents are, told from the names and shapes of their tensors.

    Args:
        contents: what files.read returned, or the tensors alone.
        path: the file, for messages.
        arch, source, stride: architecture, layout and total stride that they must be of, where
            that is known.
        entry: name of the set of weights to take, where the file has several.

    Raises ConversionError when a tensor is unknown, missing or of another shape, or when `arch`,
    `source`, `entry` or `stride` contradict the contents.
    """
    if not isinstance(contents, Contents):
        contents = Contents(contents)
    sources = [layout for layout in layouts.SOURCES if source in (None, layout.name)]
    with unpickle.reading(path):
        candidates = entries.entries(contents.tree)
    numeric = [entry for entry in candidates if entry.is_numeric]
    if candidates and not numeric:
        assert_numbers(candidates[0].tensors, path)
    attempts = [
        attempt
        for candidate in numeric
        for attempt in Search(sources, arch, stride).attempts(candidate)
    ]
    if entry is not None:
        attempts = _called(entry, attempts, path)
    fitting = [(a.entry, a.network) for a in attempts if a.network is not None]
    if not fitting:
        _assert_tensors(contents, attempts, path)
        names = sorted({layout.name for layout in sources})
        raise_misfit(max(attempts, key=lambda attempt: attempt.known), path, arch, names, stride)
    of_mmengine = _is_mmengines(contents.tree)
    taken, network = _preferred(fitting, arch, of_mmengine)
    attempt = next(attempt for attempt in attempts if attempt.network is network)
    renaming = network.renaming
    assert_numbers(renaming.tensors, path)
    assert_fractions(renaming.tensors, path)
    note = None
    if stride is None:
        network, note = total_stride.told_or_assumed(network, path)
    layout = _layout(network)
    if layout.name == "mmpretrain":
        note = _joined(note, mmpretrain.note(network.arch, form_of(renaming.tensors)))
    if entry is None and not _is_averaged(taken, layout, of_mmengine):
        note = _joined(note, _passed_over(attempts, network, of_mmengine))
    if arch not in (None, network.arch):
        raise ConversionError(
            f"{path} holds {network.arch}, but {arch} was asked for; leave the architecture out or "
            f"say {network.arch}"
        )
    shapes = network.shapes
    if class_count(renaming.tensors) is None:
        note = _joined(note, _left_out_classifier(taken, renaming, numeric))
    with np.errstate(over="ignore"):  # the equivalence check refuses infinite weights
        state_dict = {
            key: tensor.reshape(shapes[key]).astype(np.float32, copy=False)
            for key, tensor in renaming.tensors.items()
        }
    return Foreign(
        layout,
        network.arch,
        network.options,
        class_count(state_dict) or 0,
        state_dict,
        taken.dropped + renaming.dropped,
        taken.name,
        [*dict.fromkeys(other.name for other, _ in fitting if other.name != taken.name)],
        attempt.colour_orders,
        note,
    )


def _assert_tensors(contents: Contents, attempts: list[Attempt], path: str | PathLike) -> None:
    """Raise ConversionError for a file that holds a whole network, or no tensors at all."""
    if (pickled := foreign.module_name(contents.tree)) is not None:
        raise ConversionError(
            f"{path} holds a whole network, pickled as {pickled}, whose code was not run; load "
            "it where that code is, and save net.state_dict() instead: torch.save"
            "(net.state_dict(), 'weights.pth'), or mge.save for MegEngine's"
        )
    if not attempts:
        raise ConversionError(f"{path} holds no tensors; give a checkpoint or a state dict")


def _layout(network: Network) -> Source:
    """Return the layout of a network: chenyaofo's where it is one of those that they publish."""
    is_published = network.stride == 8 and total_stride.kind(network) in chenyaofo.PUBLISHED
    layout = network.renaming.source
    return chenyaofo.REPVGG if layout is dingxiaoh.REPVGG and is_published else layout


# ---------------------------------------------------------------- entries


def _is_mmengines(tree: Any) -> bool:
    """Return whether mmengine, or an older framework of OpenMMLab, has written a checkpoint."""
    if not isinstance(tree, dict):
        return False
    meta = tree.get("meta")
    return "message_hub" in tree or (isinstance(meta, dict) and "mmengine_version" in meta)


def _joined(*notes: str | None) -> str | None:
    return "; ".join(filter(None, notes)) or None


def _passed_over(attempts: list[Attempt], network: Network, of_mmengine: bool) -> str | None:
    """Return a sentence about averaged weights that are not a whole network like the one taken."""
    for attempt in attempts:
        is_averaged = _is_averaged(attempt.entry, attempt.renamings[0].source, of_mmengine)
        if is_averaged and attempt.is_known and attempt.network is None:
            averaged = replace(network, renaming=attempt.renamings[0])
            return (
                f"the averaged weights {attempt.entry.name!r} are not taken, as they lack what a "
                f"{network.arch} has: {some(averaged.problems)}"
            )
    return None


def _left_out_classifier(
    taken: entries.Entry, renaming: Renaming, candidates: list[entries.Entry]
) -> str | None:
    """Return a sentence about a matrix and its bias beside a backbone that was taken."""
    matrices = [
        f".{key}"
        for candidate in candidates
        for key, tensor in candidate.tensors.items()
        if tensor.ndim == 2 and key.endswith(".weight")
    ]
    layers = [key.removesuffix(".weight") for key in taken.dropped if key.endswith(".weight")]
    names = [
        layer
        for layer in layers
        if f"{layer}.bias" in taken.dropped
        and any(matrix.endswith(f".{layer}.weight") for matrix in matrices)
    ]
    if not names:
        return None
    name = names[0]
    expected = next(iter(renaming.source.from_ours({"linear.weight": np.zeros((1, 1))})))
    return (
        f"{name}.weight and {name}.bias are left out, so that the network has no classifier; if "
        f"they are its classifier, rename them to {expected} and {expected[:-6]}bias"
    )


def _called(name: str, attempts: list[Attempt], path: str | PathLike) -> list[Attempt]:
    """Return the attempts at the entry called `name`."""
    called = [attempt for attempt in attempts if attempt.entry.is_called(name)]
    if not called:
        names = dict.fromkeys(attempt.entry.name for attempt in attempts)
        raise ConversionError(
            f"{path} has no entry {name!r}; those with tensors are {some([*names])}"
        )
    exact = [attempt for attempt in called if attempt.entry.name == name]
    return exact or called


def _is_averaged(entry: entries.Entry, source: Source, of_mmengine: bool) -> bool:
    """Return whether these are averaged weights, by the name of the entry."""
    if entries.MMENGINES_RAW in entry.path:
        return not (of_mmengine or source.name == "mmpretrain")
    return entry.is_averaged


def _preferred(fitting: list[Fit], arch: str | None, of_mmengine: bool) -> Fit:
    """Return the entry to take: the largest, and of several the one to evaluate."""

    def size(fit: Fit) -> tuple[bool, bool, int]:
        _, network = fit
        tensors = network.renaming.tensors
        return network.arch == arch, class_count(tensors) is not None, len(tensors)

    def preference(fit: Fit) -> tuple[int, bool, bool]:
        entry, network = fit
        names = network.renaming.source.entries
        known = [i for i, name in enumerate(names) if name in entry.path]
        averaged = _is_averaged(entry, network.renaming.source, of_mmengine)
        return (*known, len(names))[0], not averaged, entries.MMENGINES_RAW in entry.path

    largest = max(fitting, key=size)
    equal = [
        fit
        for fit in fitting
        if fit[1].arch == largest[1].arch and size(fit)[:2] == size(largest)[:2]
    ]
    return min(equal, key=preference)
