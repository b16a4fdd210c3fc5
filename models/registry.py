"""Re-parameterized ConvNets: `create` one by name, `to_deploy` it, `profile` it.

import models
net = models.create("RepVGGA0", num_classes=10)
deployed = models.to_deploy(net)      # a new network: one convolution a block
"""

from __future__ import annotations

import difflib
from fnmatch import fnmatchcase
from os import PathLike
from typing import Any

import megengine.module as M

from . import mobileone, repghost, repvgg, repvgg_plus, repvit
from .profile import Profile, profile
from .reparam import to_deploy

__all__ = [
    "BLOCKS",
    "Profile",
    "canonical_name",
    "create",
    "head_names",
    "list_models",
    "profile",
    "state_shapes",
    "to_deploy",
]

# name -> (class, its keyword arguments)
_REGISTRY = {
    **{name: (repvgg.RepVGG, config) for name, config in repvgg.VARIANTS.items()},
    **{name: (repvgg_plus.RepVGGPlus, config) for name, config in repvgg_plus.VARIANTS.items()},
    **{name: (mobileone.MobileOne, config) for name, config in mobileone.VARIANTS.items()},
    **{name: (repvit.RepViT, config) for name, config in repvit.VARIANTS.items()},
    **{name: (repghost.RepGhost, config) for name, config in repghost.VARIANTS.items()},
}

# name -> (class, its keyword arguments): every kind of block alone
BLOCKS = {
    **{f"RepVGG block: {kind}": (repvgg.RepVGGBlock, c) for kind, c in repvgg.BLOCKS.items()},
    **{f"QARepVGG block: {k}": (repvgg.QARepVGGBlock, c) for k, c in repvgg.BLOCKS.items()},
    **{f"MobileOne unit: {k}": (mobileone.MobileOneUnit, c) for k, c in mobileone.BLOCKS.items()},
    **{f"RepViT {k}": (repvit.RepViTBlock, c) for k, c in repvit.BLOCKS.items()},
    **{f"RepViT {k}": (repvit.Downsample, c) for k, c in repvit.DOWNSAMPLES.items()},
    **{f"RepGhost {k}": (repghost.GhostModule, c) for k, c in repghost.BLOCKS.items()},
    **{f"RepGhost {k}": (repghost.Bottleneck, c) for k, c in repghost.BOTTLENECKS.items()},
}


def _key(name: str) -> str:
    return name.lower().translate(str.maketrans("", "", "-_."))


_BY_KEY = {_key(name): name for name in _REGISTRY}


def list_models(pattern: str = "*") -> list[str]:
    """Names of the architectures that match a shell pattern ("RepVGGB*g4"), case ignored."""
    return [name for name in _REGISTRY if fnmatchcase(name.lower(), pattern.lower())]


def canonical_name(arch: str) -> str:
    """The registered name of `arch`; case, "-", "_" and "." are ignored ("repvgg_a0").

    Raises ValueError, naming the nearest ones, when there is no such architecture.
    """
    name = _BY_KEY.get(_key(arch))
    if name is None:
        near = difflib.get_close_matches(_key(arch), _BY_KEY, n=4, cutoff=0.5)
        names = ", ".join(_BY_KEY[key] for key in near) or ", ".join(_REGISTRY)
        raise ValueError(f"unknown architecture {arch!r}; the nearest names are {names}")
    return name


def state_shapes(model: M.Module) -> dict[str, tuple[int, ...]]:
    """Key -> shape of every tensor, as `state_dict` has them but without copying any."""
    norms = {
        name for name, m in model.named_modules() if isinstance(m, M.BatchNorm1d | M.BatchNorm2d)
    }
    return {
        key: (tensor.size,) if key.rpartition(".")[0] in norms else tuple(tensor.shape)
        for key, tensor in (*model.named_parameters(), *model.named_buffers())
    }


def head_names(model: M.Module) -> list[str]:
    """Names of the parameters that depend on the class count: those of the classifiers."""
    heads = [
        name
        for name, module in model.named_modules()
        if isinstance(module, M.Linear) and module.out_features == model.num_classes
    ]
    return [f"{name}.{parameter}" for name in heads for parameter in ("weight", "bias")]


def create(
    arch: str,
    num_classes: int = 1000,
    deploy: bool = False,
    pretrained: str | PathLike | None = None,
    **options: Any,
) -> M.Module:
    """A network by name, in training mode.

    Args:
        arch: a name of `list_models()`; see `canonical_name`.
        num_classes: length of the logits.
        deploy: the fused form, one convolution a block.
        pretrained: a checkpoint to take the weights from. A train-form file is fused when `deploy`
            is set; a deploy-form file cannot be unfused.
        options: what the family leaves open: `heads` and `legacy` of RepViT. A checkpoint says its
            own.

    Raises ValueError for an unknown name, and training.checkpoint.CheckpointError when the file is
    not a checkpoint of this architecture, class count and form.
    """
    if num_classes < 1:
        raise ValueError(f"num_classes is {num_classes}, but a classifier needs at least one class")
    name = canonical_name(arch)
    if pretrained is not None:
        if options:
            raise ValueError(f"{', '.join(options)}: the checkpoint decides; leave it out")
        from training import checkpoint  # the only place where models/ meets a file

        return checkpoint.load_model(pretrained, name, num_classes, deploy=deploy)
    network, config = _REGISTRY[name]
    model = network(**config, **options, num_classes=num_classes, deploy=deploy)
    model.arch, model.options = name, options
    return model
