"""The original RepGhost (ChengpengChen/RepGhost) and timm's, whose keys are the same.

In their deploy form only the branches are fused; all other batch norms are left.
"""

from __future__ import annotations

from dataclasses import replace

from data.transforms import TORCHVISION

from . import batch_norm
from .keymap import Rules, Source, Tensors, product


def _conv_bn(conv: str, bn: str, ours: str) -> Rules:
    """Return the rules of a convolution and its batch norm; `_fold_the_rest` fuses the two."""
    return (
        (f"{conv}.{{p}}", f"{ours}.conv.{{p}}"),
        (f"{bn}.{{p}}", f"{ours}.bn.{{p}}"),
        (f"{conv}.weight", f"{ours}.reparam.weight"),
        (f"{bn}.bias", f"{ours}.reparam.bias"),
    )


_GHOST = product(
    (("ghost1.", "ghost1."), ("ghost2.", "ghost2.")),
    (
        *_conv_bn("primary_conv.0", "primary_conv.1", "primary"),
        ("cheap_operation.0.{p}", "dense.conv.{p}"),
        ("cheap_operation.1.{p}", "dense.bn.{p}"),
        ("fusion_bn.0.{p}", "identity.{p}"),
        ("cheap_operation.{p}", "reparam.{p}"),
    ),
)
_RULES = (
    *_conv_bn("conv_stem", "bn1", "stem"),
    *_conv_bn("blocks.9.0.conv", "blocks.9.0.bn1", "last"),
    ("conv_head.{p}", "head.{p}"),
    ("classifier.{p}", "linear.{p}"),
    *product(
        (
            ("blocks.0.0.", "stage0.0."),
            ("blocks.1.0.", "stage1.0."),
            ("blocks.2.0.", "stage1.1."),
            ("blocks.3.0.", "stage2.0."),
            ("blocks.4.0.", "stage2.1."),
            ("blocks.5.0.", "stage3.0."),
            ("blocks.6.{i}.", "stage3.{i+1}."),
            ("blocks.7.0.", "stage4.0."),
            ("blocks.8.{i}.", "stage4.{i+1}."),
        ),
        (
            *_GHOST,
            *_conv_bn("conv_dw", "bn_dw", "depthwise"),
            ("se.conv_reduce.{p}", "se.down.{p}"),
            ("se.conv_expand.{p}", "se.up.{p}"),
            *_conv_bn("shortcut.0", "shortcut.1", "shortcut.0"),
            *_conv_bn("shortcut.2", "shortcut.3", "shortcut.1"),
        ),
    ),
)


def _fold_the_rest(ours: Tensors) -> Tensors:
    """Fold the batch norms that their deploy form has left, as the deploy form here has none."""
    ours = dict(ours)
    if any(key.endswith(".reparam.weight") for key in ours):
        for key in [key for key in ours if key.endswith(".conv.weight")]:
            layer = key.removesuffix(".conv.weight")
            folded = batch_norm.fold(ours, key, f"{layer}.bn")
            if folded is not None:
                ours[f"{layer}.reparam.weight"], ours[f"{layer}.reparam.bias"] = folded
    return ours


def _with_batch_norms(theirs: Tensors) -> Tensors:
    """Replace each bias without a kernel by a batch norm that adds it: the reverse of folding."""
    theirs = dict(theirs)
    for key in [key for key in theirs if key.endswith(".bias")]:
        layer = key.removesuffix(".bias")
        if f"{layer}.weight" not in theirs:
            theirs |= batch_norm.adding(theirs[key], layer, counted=True)
    return theirs


REPGHOST, TIMM = (
    Source(
        name,
        title,
        "RepGhost*",
        _RULES,
        replace(TORCHVISION, interpolation="bicubic"),
        finish=_fold_the_rest,
        restore=_with_batch_norms,
    )
    for name, title in (
        ("repghost", "ChengpengChen/RepGhost, or timm, whose keys are the same"),
        ("timm", "timm"),
    )
)
