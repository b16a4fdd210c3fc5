"""The networks by name, and every kind of block alone."""

from __future__ import annotations

import difflib
import operator
import re
from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import megengine.module as M

from . import fastvit, layers, mobileone, repghost, replknet, repvgg, repvgg_plus, repvit

# name -> (class, its keyword arguments)
_REGISTRY: dict[str, tuple[type[M.Module], dict[str, Any]]] = {
    **{name: (repvgg.RepVGG, config) for name, config in repvgg.VARIANTS.items()},
    **{name: (repvgg_plus.RepVGGPlus, config) for name, config in repvgg_plus.VARIANTS.items()},
    **{name: (mobileone.MobileOne, config) for name, config in mobileone.VARIANTS.items()},
    **{name: (repvit.RepViT, config) for name, config in repvit.VARIANTS.items()},
    **{name: (repghost.RepGhost, config) for name, config in repghost.VARIANTS.items()},
    **{name: (fastvit.FastViT, config) for name, config in fastvit.VARIANTS.items()},
    **{name: (replknet.RepLKNet, config) for name, config in replknet.VARIANTS.items()},
}

# name -> (class, its keyword arguments), of every kind of block, for verification
BLOCKS: dict[str, tuple[type[M.Module], dict[str, Any]]] = {
    **{f"RepVGG block: {kind}": (repvgg.RepVGGBlock, c) for kind, c in repvgg.BLOCKS.items()},
    **{f"QARepVGG block: {k}": (repvgg.QARepVGGBlock, c) for k, c in repvgg.BLOCKS.items()},
    **{f"MobileOne unit: {k}": (mobileone.MobileOneUnit, c) for k, c in mobileone.BLOCKS.items()},
    **{f"RepViT {k}": (repvit.RepViTBlock, c) for k, c in repvit.BLOCKS.items()},
    **{f"RepViT {k}": (repvit.Downsample, c) for k, c in repvit.DOWNSAMPLES.items()},
    **{f"RepGhost {k}": (repghost.GhostModule, c) for k, c in repghost.BLOCKS.items()},
    **{f"RepGhost {k}": (repghost.Bottleneck, c) for k, c in repghost.BOTTLENECKS.items()},
    **{f"FastViT {k}": (fastvit.FastViTBlock, c) for k, c in fastvit.BLOCKS.items()},
    **{f"FastViT {k}": (layers.FusibleConvBN, c) for k, c in fastvit.DEPTHWISE.items()},
    **{f"FastViT {k}": (fastvit.PatchEmbedding, c) for k, c in fastvit.EMBEDDINGS.items()},
    **{f"FastViT {k}": (mobileone.MobileOneUnit, c) for k, c in fastvit.UNITS.items()},
    **{f"RepLKNet {k}": (replknet.RepLKNetBlock, c) for k, c in replknet.BLOCKS.items()},
    **{f"RepLKNet {k}": (layers.LargeKernel, c) for k, c in replknet.LARGE_KERNELS.items()},
    **{f"RepLKNet {k}": (replknet.Transition, c) for k, c in replknet.TRANSITIONS.items()},
}


def _key(name: str) -> str:
    """Return a name or a shell pattern without what spellings differ in.

    Within "[" and "]" of a pattern "-" is no separator, but a range.
    """
    return re.sub(r"(\[[^]]*\])|[-_.]", r"\1", name.lower())


_BY_KEY = {_key(name): name for name in _REGISTRY}


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the architectures that match a shell pattern, such as "RepVGGB*g4".

    As in `canonical_name`, case, "-", "_" and "." make no difference.
    """
    return [name for key, name in _BY_KEY.items() if fnmatchcase(key, _key(pattern))]


def canonical_name(arch: str) -> str:
    """Return the registered name of `arch`, whatever its case, "-", "_" and "." ("repvgg_a0").

    Raises ValueError, with the nearest names, if there is no such architecture.
    """
    name = _BY_KEY.get(_key(arch))
    if name is None:
        near = difflib.get_close_matches(_key(arch), _BY_KEY, n=4, cutoff=0.5)
        names = ", ".join(_BY_KEY[key] for key in near) or ", ".join(_REGISTRY)
        raise ValueError(f"unknown architecture {arch!r}; the nearest names are {names}")
    return name


def own_options(arch: str) -> dict[str, tuple]:
    """Return the options of `create` that are specific to an architecture: name -> values.

    `arch` is a registered name.
    """
    network, _ = _REGISTRY[arch]
    return network.own_options


def variant_name(arch: str, options: Mapping[str, Any]) -> str:
    """Return a name for files: `arch`, and its total stride where that is not 32.

    For RepVGGA0 with {"stride": 8}, `options` being those of a network, it is "RepVGGA0-stride8".
    """
    return f"{arch}-stride{options['stride']}" if "stride" in options else arch


def state_shapes(model: M.Module) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of `model.state_dict()` by key, without copying tensors."""
    norms = {
        name for name, m in model.named_modules() if isinstance(m, M.BatchNorm1d | M.BatchNorm2d)
    }
    return {
        key: (tensor.size,) if key.rpartition(".")[0] in norms else tuple(tensor.shape)
        for key, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def head_names(model: M.Module) -> list[str]:
    """Return the names of the classifiers' parameters, which depend on the number of classes.

    The classifiers are a network's linear layers, whatever their number of outputs.
    """
    return [
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, M.Linear)
        for parameter in ("weight", "bias")
        if getattr(module, parameter) is not None
    ]


def create(
    arch: str,
    num_classes: int = 1000,
    deploy: bool = False,
    in_chans: int = 3,
    stride: int = 32,
    **options: Any,
) -> M.Module:
    """Return a new network, in training mode.

    Args:
        arch: a name of `list_models()`, in any spelling that `canonical_name` takes.
        num_classes: length of the logits.
        deploy: build the fused form, with one convolution per block.
        in_chans: number of channels of the images; 1 for grey images.
        stride: total stride: pixels of the input, along one side, for each position of the last
            map; 8 or 16 instead of 32 for small images, such as CIFAR's.
        options: further arguments of the family: `heads` and `legacy` for RepViT. A checkpoint
            records the ones of its network, its number of channels where that is not 3, and its
            stride where that is not 32.

    Raises ValueError for an unknown name or option or an impossible value, and for `pretrained`, as
    `weights.load` reads files; TypeError for a number that is not whole.
    """
    num_classes = _whole("num_classes", num_classes)
    in_chans, stride = _whole("in_chans", in_chans), _whole("stride", stride)
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, but a classifier needs at least one class")
    if in_chans < 1:
        raise ValueError(f"in_chans is {in_chans}, but an image has at least one channel")
    name = canonical_name(arch)
    pretrained = options.pop("pretrained", None)
    if pretrained not in (None, False):
        file = "FILE" if pretrained is True else pretrained
        raise ValueError(f"models.create reads no file; use weights.load({file!r}, {name!r})")
    options = {option: _own_option(name, option, value) for option, value in options.items()}
    network, config = _REGISTRY[name]
    model = network(
        **config,
        **options,
        num_classes=num_classes,
        stride=stride,
        deploy=deploy,
        in_chans=in_chans,
    )
    if in_chans != 3:
        options["in_chans"] = in_chans
    if stride != 32:
        options["stride"] = stride
    model.arch, model.options = name, options
    return model


def _whole(name: str, number: Any) -> int:
    """Return a whole number of any type, such as NumPy's, as the int that a checkpoint records."""
    try:
        return int(operator.index(number))
    except TypeError:
        raise TypeError(
            f"{name} is {number!r}, but a whole number was expected; give an int"
        ) from None


def _own_option(arch: str, name: str, value: Any) -> Any:
    """Return the value of `own_options` that equals the given one: True for 1, for example."""
    options = own_options(arch)
    if name not in options:
        known = ", ".join(("in_chans", "stride", *options))
        raise ValueError(f"{arch} has no option {name!r}; leave it out, or give one of {known}")
    if value not in options[name]:
        possible = " or ".join(map(str, options[name]))
        raise ValueError(f"{name} is {value!r}, but for {arch} it can be {possible}; give one")
    return options[name][options[name].index(value)]
