"""The total stride of the network in a file, told by its tensors or assumed."""

from __future__ import annotations

from dataclasses import replace
from os import PathLike

from . import chenyaofo, dingxiaoh, own
from .search import Network
from .state import class_count

_OF_IMAGENET = 1000  # classes of a network that nobody trains at a stride of 8


def told_or_assumed(network: Network, path: str | PathLike) -> tuple[Network, str | None]:
    """Return the network with the total stride that `path` tells, and what is assumed of it."""
    source, arch_and_classes = network.renaming.source, kind(network)
    if network.stride == 8 and source.name != own.NAME:
        if source is dingxiaoh.REPVGG and chenyaofo.is_published(path, *arch_and_classes):
            return network, None
        return network, (
            "a total stride of 8 is taken, as there are branches that only blocks with a stride of "
            "1 have; the first convolution, of which the tensors do not tell it, is assumed to "
            "have a stride of 1 too; give --size, --mean and --std where the network was trained "
            "with others than are assumed"
        )
    if network.stride != 32 or arch_and_classes[1] == _OF_IMAGENET:
        return network, None
    if source.name == own.NAME:
        # 16 always fits: the first convolution, of the images, has no branch more with stride 1
        return network, _note((8, 16) if _fits_8(network) else (16,))
    if source is not dingxiaoh.REPVGG or not chenyaofo.files_like(arch_and_classes[0], 0):
        return network, None
    if not _fits_8(network):
        return network, None
    if chenyaofo.is_published(path, *arch_and_classes):
        return replace(network, stride=8), None
    if chenyaofo.files_like(*arch_and_classes):
        return network, chenyaofo.note(*arch_and_classes)
    return network, _note((8,))  # of other images as small as CIFAR's


def kind(network: Network) -> tuple[str, int]:
    """Return a network's architecture and its number of classes, 0 for a backbone."""
    return network.arch, class_count(network.renaming.tensors) or 0


def _fits_8(network: Network) -> bool:
    return not replace(network, stride=8).problems


def _note(others: tuple[int, ...]) -> str:
    """Return what is to be said where 32 is taken and the tensors may be of other strides."""
    flags = " or ".join(f"--stride {stride}" for stride in others)
    return (
        "a total stride of 32 is assumed, as the tensors do not tell it from "
        f"{' and '.join(map(str, others))}; convert the file with {flags} if it has that one"
    )
