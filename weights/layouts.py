"""The layouts of other repositories, and writing tensors of this project in them."""

from __future__ import annotations

from fnmatch import fnmatchcase

from . import (
    apple,
    basecls,
    dingxiaoh,
    fastvit,
    mmpretrain,
    own,
    port,
    repghost,
    replknet,
    repvit,
    timm,
)
from .keymap import Tensors
from .search import ConversionError

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
    own.FASTVIT,
    own.REPLKNET,
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
    mmpretrain.REPVGG,
    mmpretrain.MOBILEONE,
    mmpretrain.REPLKNET,
)


def export(state_dict: Tensors, arch: str, name: str) -> Tensors:
    """Return a state dict of this project, in either form, in the layout called `name`.

    Raises ConversionError when that layout has no such architecture, or no place for a tensor.
    """
    sources = [source for source in SOURCES if fnmatchcase(arch, source.archs)]
    source = next((source for source in sources if source.name == name), None)
    if source is None:
        raise ConversionError(
            f"{name} has no {arch}; it can be exported as {', '.join(names(arch))}"
        )
    try:
        return source.from_ours(state_dict)
    except KeyError as error:
        raise ConversionError(
            f"{name} has no place for {error.args[0]} of {arch}; export the other form"
        ) from None


def names(arch: str) -> list[str]:
    """Return the names of the layouts that have an architecture."""
    return sorted({source.name for source in SOURCES if fnmatchcase(arch, source.archs)})
