"""Other repositories' layouts: recognizing the contents of a file, and exporting ours to one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any, NamedTuple

import models

import numpy as np

from data.transforms import Preprocessing
from utils import UserError

from . import apple, basecls, chenyaofo, dingxiaoh, fastvit, port, repghost, replknet, repvit, timm
from .keymap import Source, Tensors
from .state import Shapes, class_count, form_of, misfits, shapes_of

SOURCES = (
    basecls.REPVGG,
    dingxiaoh.REPVGG,
    dingxiaoh.REPVGG_PLUS,
    timm.REPVGG,
    port.REPVGG,
    port.REPVGG_PLUS,
    apple.MOBILEONE,
    timm.MOBILEONE,
    repghost.REPGHOST,
    repghost.TIMM,
    repvit.THU,
    repvit.TIMM,
    fastvit.APPLE,
    fastvit.TIMM,
    replknet.MEGENGINE,
    replknet.PYTORCH,
)

# Where checkpoints keep the weights beside other things; averaged weights are the ones evaluated.
_NESTED = ("state_dict_ema", "model_ema", "state_dict", "model")


class ConversionError(UserError):
    """Tensors that are not those of a known network; the message lists them."""


@dataclass
class Foreign:
    """A recognized checkpoint of another repository, in this project's names and shapes.

    Attributes:
        source: the layout of the file.
        arch, options: name and options of the network for models.create.
        num_classes: length of the logits.
        state_dict: name -> float32 array; a view of the file's array where no change is needed.
        dropped: keys of the file that were left out on purpose.
        note: what was assumed, as the tensors do not tell it, or None.
    """

    source: Source
    arch: str
    options: dict[str, Any]
    num_classes: int
    state_dict: Tensors
    dropped: list[str]
    note: str | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """What the source trained and tested this architecture with."""
        size, crop_ratio = self.source.sizes.get(self.arch, (224, 0.875))
        return replace(self.source.preprocessing, size=size, crop_ratio=crop_ratio)


def recognize(
    contents: Any,
    path: str | PathLike,
    arch: str | None = None,
    source: str | None = None,
    stride: int | None = None,
) -> Foreign:
    """Return what a file's contents are, told from the names and shapes of their tensors.

    Args:
        contents: what files.read returned.
        path: the file, for messages.
        arch, source, stride: architecture, layout and total stride that they must be of, where
            that is known.

    Raises ConversionError when a tensor is unknown, missing or of another shape, or when `arch`,
    `source` or `stride` contradict the contents.
    """
    renamings = _renamings(_tensors_in(contents, path), path, source)
    network, note = _fitting_network(renamings, path, arch, stride), None
    if stride is None and _may_be_for_cifar(network):
        if chenyaofo.is_published(path):
            network = replace(network, stride=chenyaofo.STRIDE)
        else:
            note = chenyaofo.note(network.arch, network.num_classes)
    if arch not in (None, network.arch):
        raise ConversionError(
            f"{path} holds {network.arch}, but {arch} was asked for; leave the architecture out or "
            f"say {network.arch}"
        )
    renaming, shapes = network.renaming, network.shapes
    with np.errstate(over="ignore"):  # the equivalence check refuses infinite weights
        state_dict = {
            key: tensor.reshape(shapes[key]).astype(np.float32, copy=False)
            for key, tensor in renaming.tensors.items()
        }
    return Foreign(
        renaming.source,
        network.arch,
        network.options,
        network.num_classes,
        state_dict,
        renaming.dropped,
        note,
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


# ---------------------------------------------------------------- contents -> tensors


def _tensors_in(contents: Any, path: str | PathLike) -> Tensors:
    tensors = _unwrapped(contents)
    if not tensors:
        raise ConversionError(f"{path} holds no tensors; give a checkpoint or a state dict")
    if odd := [key for key, tensor in tensors.items() if tensor.dtype.kind not in "biuf"]:
        raise ConversionError(f"{path} has tensors that are no real numbers: {_some(odd)}")
    return tensors


def _unwrapped(contents: Any) -> Tensors:
    """Return the flat dict of arrays within "model" and the like, without the prefix "module."."""
    while isinstance(contents, dict):
        tensors = {key: value for key, value in contents.items() if _is_array(value)}
        if tensors and all(isinstance(key, str) for key in tensors):
            prefix = "module." if all(key.startswith("module.") for key in tensors) else ""
            return {key.removeprefix(prefix): value for key, value in tensors.items()}
        inner = (contents[key] for key in _NESTED if isinstance(contents.get(key), dict))
        contents = next((value for value in inner if value), None)
    return {}


def _is_array(value: Any) -> bool:
    return isinstance(value, np.ndarray | np.generic)


# ---------------------------------------------------------------- tensors -> layout


class _Renaming(NamedTuple):
    """The tensors of a file, renamed by the rules of one layout."""

    source: Source
    tensors: Tensors
    dropped: list[str]
    unknown: list[str]  # keys that no rule knows


def _renamings(tensors: Tensors, path: str | PathLike, source: str | None) -> list[_Renaming]:
    """Return the tensors in the layouts whose rules know the most of their keys.

    Several are left where families share their keys; the shapes tell them apart.
    """
    renamings = [
        _Renaming(candidate, *candidate.to_ours(tensors))
        for candidate in SOURCES
        if source in (None, candidate.name)
    ]

    def rank(renaming: _Renaming) -> tuple[int, int]:
        return len(renaming.unknown), -len(renaming.tensors)

    lowest = min(map(rank, renamings))
    best = [renaming for renaming in renamings if rank(renaming) == lowest]
    first = best[0]
    if not first.tensors or len(first.unknown) > len(first.tensors):
        what = f"layout {source!r}" if source else "any known layout"
        raise ConversionError(
            f"{path} is not in {what}: it has keys such as {_some(first.unknown)}; "
            f"the layouts are {', '.join(sorted({s.name for s in SOURCES}))}"
        )
    if first.unknown:
        raise ConversionError(
            f"{path} ({first.source.title}) has tensors that no rule knows: {_some(first.unknown)}"
        )
    return best


# ---------------------------------------------------------------- layout -> architecture


@dataclass(frozen=True)
class _Network:
    """An architecture that renamed tensors may be those of."""

    arch: str
    renaming: _Renaming
    stride: int = 32

    @property
    def num_classes(self) -> int:
        return class_count(self.renaming.tensors) or 1000

    @property
    def options(self) -> dict[str, Any]:
        source, tensors = self.renaming.source, self.renaming.tensors
        own = fnmatchcase(self.arch, source.archs)  # not when another family was asked for
        options = source.options(tensors) if own and form_of(tensors) == "train" else {}
        return options if self.stride == 32 else {**options, "stride": self.stride}

    @property
    def shapes(self) -> Shapes:
        form = form_of(self.renaming.tensors)
        return shapes_of(self.arch, self.num_classes, form, **self.options)

    @property
    def problems(self) -> list[str]:
        return misfits(self.renaming.tensors, self.shapes)


def _fitting_network(
    renamings: list[_Renaming], path: str | PathLike, arch: str | None, stride: int | None
) -> _Network:
    """Return the network whose tensors these are, `arch` if it is one of several.

    Where no `stride` is given, the total stride is 32 if that fits, else 8.
    """
    networks = {
        name: _Network(name, renaming, stride or 32)
        for renaming in reversed(renamings)
        for name in models.list_models()
        # nobody else has "-qa" in train form, and the deploy form is that of the twin without
        if fnmatchcase(name, renaming.source.archs) and (name == arch or not name.endswith("-qa"))
    }
    for name in sorted(networks, key=lambda name: name != arch):  # the one asked for first
        if not networks[name].problems:
            return networks[name]
    where = f"{path} ({renamings[0].source.title})"
    if arch is not None:
        nearest = networks.get(arch) or _Network(arch, renamings[0], stride or 32)
    else:
        nearest = min(networks.values(), key=lambda network: len(network.problems))
    if stride is None and not (other := replace(nearest, stride=8)).problems:
        return other
    if stride is not None and stride != 32:
        where += f" with a total stride of {stride}"
    if arch is not None:
        raise ConversionError(f"{where} does not fit {arch}: {_some(nearest.problems)}")
    raise ConversionError(
        f"{where} fits no architecture; the nearest is {nearest.arch}, "
        f"but {_some(nearest.problems)}"
    )


def _may_be_for_cifar(network: _Network) -> bool:
    """Return whether it fits the stride of a network for CIFAR too, and is of a kind published."""
    return (
        network.stride == 32
        and network.renaming.source is dingxiaoh.REPVGG
        and (network.arch, network.num_classes) in chenyaofo.PUBLISHED
        and not replace(network, stride=chenyaofo.STRIDE).problems
    )


def _some(items: list[str]) -> str:
    more = f" and {len(items) - 5} more" if len(items) > 5 else ""
    return ", ".join(items[:5]) + more
