"""The official RepLKNet of MegEngine (BGR images) and of PyTorch (RGB images).

In PyTorch's merged form the large and the small kernels are fused and all batch norms are left; in
MegEngine's deploy form the last batch norm is.
"""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from data.transforms import BASECLS, TORCHVISION

from . import batch_norm
from .keymap import Rules, Source, Tensors, product

_NORMED = (".enter", ".expand")  # convolutions with a batch norm before them
WARPED = 384  # side in pixels from which on the PyTorch repository's evaluation does not crop


def note_of_warping(size: int) -> str:
    """Return what is to be said of a network for images of such a side."""
    return (
        "DingXiaoH/RepLKNet-pytorch's own evaluation warps whole images to "
        f"{size}x{size}; here their short side is resized to {size} and the centre is taken"
    )


def note_of_side(size: int) -> str:
    """Return what is to be said where the side of the images is assumed."""
    return (
        f"images of {size} px are assumed, as the tensors do not tell their side; give --size "
        f"{WARPED if size == 224 else 224} if the network was trained for that"
    )


def _conv_bn(theirs: str, ours: str) -> Rules:
    """Return the rules of a convolution and its batch norm; `_restore` needs the last two."""
    return (
        (f"{theirs}.conv.{{p}}", f"{ours}.conv.{{p}}"),
        (f"{theirs}.bn.{{p}}", f"{ours}.bn.{{p}}"),
        (f"{theirs}.conv.weight", f"{ours}.reparam.weight"),
        (f"{theirs}.bn.bias", f"{ours}.reparam.bias"),
    )


def _fusible(theirs: str, ours: str) -> Rules:
    """Return the rules of a convolution and its batch norm, and of the two fused."""
    return (
        (f"{theirs}.conv.{{p}}", f"{ours}.conv.{{p}}"),
        (f"{theirs}.bn.{{p}}", f"{ours}.bn.{{p}}"),
        (f"{theirs}.weight", f"{ours}.reparam.weight"),
        (f"{theirs}.bias", f"{ours}.reparam.bias"),
    )


_HEAD = (
    ("norm.{p}", "norm.{p}"),
    ("head.weight", "linear.weight"),  # not head.fc.weight, of another repository
    ("head.bias", "linear.bias"),
)

# blocks and transitions in one row
_MEGENGINE_RULES = (
    *(rule for i in range(4) for rule in _fusible(f"stem.{2 * i}", f"stage0.{i}")),
    *product(
        (
            ("blocks.{i+24}.", "stage4.{i}."),
            ("blocks.{i+5}.", "stage3.{i}."),
            ("blocks.{i+2}.", "stage2.{i}."),
            ("blocks.{i}.", "stage1.{i}."),
        ),
        (
            ("pre_bn.{p}", "enter.norm.{p}"),
            *_fusible("pw1", "enter"),
            ("dw.dw_large.{p}", "spread.large.{p}"),
            ("dw.dw_small_5.{p}", "spread.small.{p}"),
            ("dw.{p}", "spread.reparam.{p}"),
            *_fusible("pw2", "leave"),
            ("premlp_bn.{p}", "expand.norm.{p}"),
            *_fusible("mlp.fc1", "expand"),
            *_fusible("mlp.fc2", "project"),
            *_fusible("0", "widen"),
            *_fusible("2", "depthwise"),
        ),
    ),
    *_HEAD,
)

# as `_pair` names them
_STAGES = (
    ("stages.0.{i}.", "stage1.{i}."),
    *((f"stages.{n}.{{i}}.", f"stage{n + 1}.{{i+1}}.") for n in (1, 2, 3)),
)
_PYTORCH_RULES = (
    *_conv_bn("stem.{i}", "stage0.{i}"),
    *product(
        _STAGES,
        (
            ("mixer.prelkb_bn.{p}", "enter.norm.{p}"),
            *_conv_bn("mixer.pw1", "enter"),
            ("mixer.large_kernel.lkb_origin.{p}", "spread.large.{p}"),
            ("mixer.large_kernel.small_conv.{p}", "spread.small.{p}"),
            ("mixer.large_kernel.lkb_reparam.{p}", "spread.reparam.{p}"),
            *_conv_bn("mixer.pw2", "leave"),
            ("ffn.preffn_bn.{p}", "expand.norm.{p}"),
            *_conv_bn("ffn.pw1", "expand"),
            *_conv_bn("ffn.pw2", "project"),
        ),
    ),
    *_conv_bn("transitions.{n-2}.0", "stage{n}.0.widen"),
    *_conv_bn("transitions.{n-2}.1", "stage{n}.0.depthwise"),
    *_HEAD,
)


def _pair(theirs: Tensors) -> Tensors:
    """Rename stages.0.blocks.2... to stages.0.1.mixer..., and ...blocks.3... to stages.0.1.ffn...

    Theirs counts both halves of a block as blocks.
    """

    def renamed(match: re.Match) -> str:
        number = int(match[2])
        return f"stages.{match[1]}.{number // 2}.{('mixer', 'ffn')[number % 2]}."

    return {re.sub(r"^stages\.(\d+)\.blocks\.(\d+)\.", renamed, k): v for k, v in theirs.items()}


def _unpair(theirs: Tensors) -> Tensors:
    """Rename back what `_pair` renamed."""

    def renamed(match: re.Match) -> str:
        return f"stages.{match[1]}.blocks.{2 * int(match[2]) + (match[3] == 'ffn')}."

    return {
        re.sub(r"^stages\.(\d+)\.(\d+)\.(mixer|ffn)\.", renamed, k): v for k, v in theirs.items()
    }


def _fold(ours: Tensors) -> Tensors:
    """Fold the batch norms that their deploy form has left, as the deploy form here has none."""
    ours = dict(ours)
    if not any(key.endswith(".reparam.weight") for key in ours):
        return ours
    for layer in [k.removesuffix(".conv.weight") for k in ours if k.endswith(".conv.weight")]:
        before = f"{layer}.norm" if layer.endswith(_NORMED) else None
        if f"{layer}.conv.bias" in ours and f"{layer}.bn.weight" not in ours:
            # of deep_fuse_BN, which leaves the batch norms before convolutions
            ours |= batch_norm.adding(ours.pop(f"{layer}.conv.bias"), f"{layer}.bn")
        folded = batch_norm.fold(ours, f"{layer}.conv.weight", f"{layer}.bn", before)
        if folded is not None:
            ours[f"{layer}.reparam.weight"], ours[f"{layer}.reparam.bias"] = folded
    folded = batch_norm.fold_before(ours, "norm", "linear")
    if folded is not None:
        ours["linear.weight"], ours["linear.bias"] = folded
    elif not ours.keys() & {"linear.weight", "linear.bias"}:
        # of a backbone, whose features are those before this norm
        ours = {key: tensor for key, tensor in ours.items() if not key.startswith("norm.")}
    return ours


def _restore(theirs: Tensors) -> Tensors:
    """Add batch norms that change nothing where `_fold` has taken them away."""
    theirs = dict(theirs)
    biases = {k: v for k, v in theirs.items() if k.endswith(".bn.bias")}
    for key in [key for key in theirs if key.endswith(".pw1.conv.weight")]:
        half = key.removesuffix(".pw1.conv.weight")
        norm = f"{half}.prelkb_bn" if half.endswith("mixer") else f"{half}.preffn_bn"
        biases[f"{norm}.bias"] = np.zeros(theirs[key].shape[1], np.float32)
    for key, bias in biases.items():
        layer = key.removesuffix(".bias")
        if f"{layer}.weight" not in theirs:
            theirs |= batch_norm.adding(bias, layer, counted=True)
    return _unpair(_with_last_norm(theirs, counted=True))


def _with_last_norm(theirs: Tensors, counted: bool = False) -> Tensors:
    """Add a last batch norm that changes nothing, unless there is one, or no classifier."""
    if "norm.weight" in theirs or "head.weight" not in theirs:
        return theirs
    zeros = np.zeros(theirs["head.weight"].shape[1], np.float32)
    return theirs | batch_norm.adding(zeros, "norm", counted)


MEGENGINE = Source(
    name="megengine",
    title="MegEngine/RepLKNet",
    archs="RepLKNet*",
    rules=_MEGENGINE_RULES,
    preprocessing=replace(BASECLS, interpolation="bicubic"),
    pytorch=False,
    finish=_fold,
    restore=_with_last_norm,
)

PYTORCH = Source(
    name="replknet",
    title="DingXiaoH/RepLKNet-pytorch",
    archs="RepLKNet*",
    rules=_PYTORCH_RULES,
    preprocessing=replace(TORCHVISION, interpolation="bicubic"),
    prepare=_pair,
    finish=_fold,
    restore=_restore,
)
