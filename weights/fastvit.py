"""The original FastViT (apple/ml-fastvit) and timm's: RGB images, 256 px, bicubic interpolation.

In their deploy form the branches are fused; the feed-forward networks keep a batch norm and a layer
scale each.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np

from data.transforms import TORCHVISION

from . import batch_norm
from .keymap import Rules, Source, Tensors, product

# where the parts of the networks are: (timm's key, our key)
_UNITS = (
    ("stem.{i}.", "stage0.{i}."),
    *((f"stages.{n}.downsample.proj.1.", f"stage{n + 1}.0.mix.") for n in (1, 2, 3)),
    ("final_conv.", "last."),
)
_SPREADS = tuple((f"stages.{n}.downsample.proj.0.", f"stage{n + 1}.0.spread.") for n in (1, 2, 3))
_BLOCKS = (
    ("stages.0.blocks.{i}.", "stage1.{i}."),
    *((f"stages.{n}.blocks.{{i}}.", f"stage{n + 1}.{{i+1}}.") for n in (1, 2, 3)),
)

# Where their key stands twice, the second rule is for exporting a deploy form: `_restore` then adds
# the batch norms and layer scales that theirs still has.
_TIMM_RULES = (
    *product(
        _UNITS,
        (
            ("conv_kxk.{p}", "dense.{p}"),
            ("conv_scale.{p}", "pointwise.{p}"),
            ("identity.{p}", "identity.{p}"),
            ("reparam_conv.{p}", "reparam.{p}"),
            ("se.fc1.{p}", "se.down.{p}"),
            ("se.fc2.{p}", "se.up.{p}"),
        ),
    ),
    *product(
        _SPREADS,
        (
            ("large_conv.{p}", "large.{p}"),
            ("small_conv.{p}", "small.{p}"),
            ("reparam_conv.{p}", "reparam.{p}"),
        ),
    ),
    *product(
        _BLOCKS,
        (
            ("token_mixer.mixer.conv_kxk.0.{p}", "token.dense.{p}"),
            ("token_mixer.mixer.conv_scale.{p}", "token.pointwise.{p}"),
            ("token_mixer.mixer.identity.{p}", "token.identity.{p}"),
            ("token_mixer.norm.identity.{p}", "token.norm.{p}"),
            ("token_mixer.layer_scale.gamma", "token.scale"),
            ("token_mixer.reparam_conv.{p}", "token.reparam.{p}"),
            ("mlp.conv.conv.{p}", "ffn.depthwise.conv.{p}"),
            ("mlp.conv.bn.{p}", "ffn.depthwise.bn.{p}"),
            ("mlp.conv.conv.weight", "ffn.depthwise.reparam.weight"),
            ("mlp.conv.bn.bias", "ffn.depthwise.reparam.bias"),
            ("mlp.fc1.{p}", "ffn.expand.{p}"),
            ("mlp.fc2.{p}", "ffn.project.conv.{p}"),
            ("layer_scale.gamma", "ffn.project.scale"),
            ("mlp.fc2.{p}", "ffn.project.reparam.{p}"),
        ),
    ),
    ("head.fc.{p}", "linear.{p}"),
)

# timm's words -> Apple's, which puts stages and patch embeddings in one row
_WORDS = (
    ("stem.", "patch_embed."),
    *((f"stages.{n}.blocks.", f"network.{2 * n}.") for n in range(4)),
    *((f"stages.{n}.downsample.", f"network.{2 * n - 1}.") for n in (1, 2, 3)),
    ("proj.0.reparam_conv", "proj.0.lkb_reparam"),
    ("large_conv", "lkb_origin"),
    ("conv_kxk", "rbr_conv"),
    ("conv_scale", "rbr_scale"),
    ("identity", "rbr_skip"),
    ("layer_scale.gamma", "layer_scale"),
    ("mlp.", "convffn."),
    ("final_conv.", "conv_exp."),
    ("se.fc1", "se.reduce"),
    ("se.fc2", "se.expand"),
    ("head.fc.", "head."),
)


def _in_apples_words(key: str) -> str:
    return reduce(lambda text, words: text.replace(*words), _WORDS, key)


_APPLE_RULES: Rules = tuple((_in_apples_words(timm), ours) for timm, ours in _TIMM_RULES)


def _fold(ours: Tensors) -> Tensors:
    """Fold the batch norms and layer scales that their deploy form has left; ours has none."""
    ours = dict(ours)
    if any(key.endswith(".reparam.weight") for key in ours):
        for layer in [k.removesuffix(".conv.weight") for k in ours if k.endswith(".conv.weight")]:
            if layer.endswith(".depthwise"):
                folded = batch_norm.fold(ours, f"{layer}.conv.weight", f"{layer}.bn")
            else:
                folded = _scaled(ours, layer)
            if folded is not None:
                ours[f"{layer}.reparam.weight"], ours[f"{layer}.reparam.bias"] = folded
    return ours


def _scaled(tensors: Tensors, layer: str) -> tuple[np.ndarray, np.ndarray] | None:
    """Remove a convolution and its layer scale from `tensors`; return them as one, in float64.

    Returns None and removes nothing when a part is missing or does not fit.
    """
    names = [f"{layer}.{part}" for part in ("conv.weight", "conv.bias", "scale")]
    if not set(names) <= tensors.keys():
        return None
    kernel, bias, scale = (tensors[name].astype(np.float64) for name in names)
    if kernel.ndim != 4 or not len(kernel) == bias.size == scale.size:
        return None
    for name in names:
        del tensors[name]
    return kernel * scale.reshape(-1, 1, 1, 1), bias.reshape(-1) * scale.reshape(-1)


def _restore(theirs: Tensors) -> Tensors:
    """Add batch norms and layer scales that change nothing where `_fold` has taken them away."""
    theirs = dict(theirs)
    apple = any(key.startswith("patch_embed.") for key in theirs)
    ffn, scale = ("convffn", "layer_scale") if apple else ("mlp", "layer_scale.gamma")
    for key in [key for key in theirs if key.endswith(f".{ffn}.fc2.bias")]:
        block = key.removesuffix(f".{ffn}.fc2.bias")
        if f"{block}.{scale}" not in theirs:
            bn = f"{block}.{ffn}.conv.bn"
            theirs |= batch_norm.adding(theirs[f"{bn}.bias"], bn, counted=True)
            theirs[f"{block}.{scale}"] = np.ones((len(theirs[key]), 1, 1), np.float32)
    return theirs


APPLE, TIMM = (
    Source(
        name,
        title,
        "FastViT*",
        rules,
        replace(TORCHVISION, interpolation="bicubic"),
        finish=_fold,
        restore=_restore,
    )
    for name, title, rules in (
        ("apple", "apple/ml-fastvit", _APPLE_RULES),
        ("timm", "timm", _TIMM_RULES),
    )
)
