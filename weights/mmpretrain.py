"""MMPretrain (open-mmlab, earlier MMClassification): PyTorch files, RGB images.

Its training checkpoints have the averaged weights, where there are any, in state_dict, and the raw
ones in ema_state_dict. An extracted backbone has no "backbone." before its keys.
"""

import re
from dataclasses import replace

from data.transforms import TORCHVISION

from . import replknet
from .keymap import BLOCKS, Rules, Source, Tensors, product

_PREFIXES: Rules = (("backbone.", ""), ("", ""))  # the first one is for exporting
_HEAD: Rules = (("head.fc.{p}", "linear.{p}"),)

REPVGG = Source(
    name="mmpretrain",
    title="MMPretrain",
    archs="RepVGG[ABD]*",
    rules=(
        *product(
            _PREFIXES,
            (("stem.", "stage0."), ("stage_{n}.{i}.", "stage{n}.{i}.")),
            (
                ("branch_3x3.conv.{p}", "dense.conv.{p}"),
                ("branch_3x3.norm.{p}", "dense.bn.{p}"),
                ("branch_1x1.conv.{p}", "pointwise.conv.{p}"),
                ("branch_1x1.norm.{p}", "pointwise.bn.{p}"),
                ("branch_norm.{p}", "identity.{p}"),
                ("branch_reparam.{p}", "reparam.{p}"),
                ("se_layer.conv1.conv.{p}", "se.down.{p}"),
                ("se_layer.conv2.conv.{p}", "se.up.{p}"),
            ),
        ),
        *_HEAD,
    ),
    preprocessing=TORCHVISION,
    entries=("state_dict",),
)

MOBILEONE = Source(
    name="mmpretrain",
    title="MMPretrain",
    archs="MobileOne*",
    rules=(
        *product(
            _PREFIXES,
            BLOCKS,
            (
                ("branch_conv_list.{k}.conv.{p}", "dense.{k}.conv.{p}"),
                ("branch_conv_list.{k}.norm.{p}", "dense.{k}.bn.{p}"),
                ("branch_scale.conv.{p}", "pointwise.conv.{p}"),
                ("branch_scale.norm.{p}", "pointwise.bn.{p}"),
                ("branch_norm.{p}", "identity.{p}"),
                ("branch_reparam.{p}", "reparam.{p}"),
                ("se.conv1.conv.{p}", "se.down.{p}"),
                ("se.conv2.conv.{p}", "se.up.{p}"),
            ),
        ),
        *_HEAD,
    ),
    preprocessing=TORCHVISION,
    entries=("state_dict",),
)


def _as_pytorchs(theirs: Tensors) -> Tensors:
    """Rename a RepLKNet's tensors to those of DingXiaoH/RepLKNet-pytorch, and pair its blocks.

    Tensors that are not MMPretrain's stay as they are, which no rule knows.
    """
    plain = {key.removeprefix("backbone."): tensor for key, tensor in theirs.items()}
    if "stages.3.norm.weight" not in plain:
        return theirs
    renamed = {
        re.sub(r"^stages\.3\.norm\.", "norm.", re.sub(r"^head\.fc\.", "head.", key)): tensor
        for key, tensor in plain.items()
    }
    return replknet.PYTORCH.prepare(renamed)


def _as_theirs(pytorchs: Tensors) -> Tensors:
    """Rename back what `_as_pytorchs` renamed, after RepLKNet-pytorch's own `restore`."""
    renamed = {}
    for key, tensor in replknet.PYTORCH.restore(pytorchs).items():
        theirs = re.sub(r"^norm\.", "stages.3.norm.", key)
        is_head = theirs.startswith("head.")
        renamed[theirs.replace("head.", "head.fc.") if is_head else f"backbone.{theirs}"] = tensor
    return renamed


REPLKNET = replace(
    replknet.PYTORCH,
    name="mmpretrain",
    title="MMPretrain",
    prepare=_as_pytorchs,
    restore=_as_theirs,
    entries=("state_dict",),
)

_URL = "https://download.openmmlab.com/mmclassification/v0"
# architecture -> top-1, top-5, end of the address; trained by OpenMMLab from scratch, but for D2se
_FIGURES = {
    "RepVGGA0": (72.37, 90.56, "20221213-60ae8e23"),
    "RepVGGA1": (74.23, 91.80, "20221213-f81bf3df"),
    "RepVGGA2": (76.49, 93.09, "20221213-a8767caf"),
    "RepVGGB0": (75.27, 92.21, "20221213-5091ecc7"),
    "RepVGGB1": (78.19, 94.04, "20221213-d17c45e7"),
    "RepVGGB1g2": (77.87, 93.99, "20221213-ae6428fd"),
    "RepVGGB1g4": (77.81, 93.77, "20221213-a7a4aaea"),
    "RepVGGB2": (78.58, 94.23, "20221213-d8b420ef"),
    "RepVGGB2g4": (79.44, 94.72, "20221213-0c1990eb"),
    "RepVGGB3": (80.58, 95.33, "20221213-927a329a"),
    "RepVGGB3g4": (80.26, 95.15, "20221213-e01cb280"),
    "MobileOneS0": (71.34, 89.87, "20221110-0bc94952"),
    "MobileOneS1": (75.72, 92.54, "20221110-ceeef467"),
    "MobileOneS2": (77.37, 93.34, "20221110-9c7ecb97"),
    "MobileOneS3": (78.06, 93.83, "20221110-c95eb3bf"),
    "MobileOneS4": (79.69, 94.46, "20221110-28d888cb"),
}


def _name(arch: str) -> str:
    family, variant = (
        ("repvgg", arch[6:]) if arch[:6] == "RepVGG" else ("mobileone", arch[9:].lower())
    )
    return f"{family}-{variant}_8xb32_in1k"


# name -> architecture, top-1, top-5, address of the file
PUBLISHED = {
    _name(arch): (
        arch,
        top1,
        top5,
        f"{_URL}/{_name(arch).partition('-')[0]}/{_name(arch)}_{end}.pth",
    )
    for arch, (top1, top5, end) in _FIGURES.items()
} | {
    "repvgg-D2se_3rdparty_in1k": (
        "RepVGGD2se",
        81.81,
        95.94,
        f"{_URL}/repvgg/repvgg-D2se_3rdparty_4xb64-autoaug-lbs-mixup-coslr-200e_in1k_"
        "20210909-cf3139b7.pth",
    )
}


def note(arch: str, form: str) -> str | None:
    """Return what is to be said of a network whose function is another one in MMPretrain's code."""
    if not _lacks_gates(arch, form):
        return None
    return (
        "the squeeze-and-excitation of the train form is applied, as it belongs to the network; "
        "MMPretrain's own code leaves it out in deploy form, so its logits differ"
    )


def note_of_export(arch: str, form: str) -> str | None:
    """Return what is to be said of writing such a network for MMPretrain."""
    if not _lacks_gates(arch, form):
        return None
    advice = (
        "use the layout repvgg, whose code has it"
        if arch.endswith("-qa")  # whose train form MMPretrain does not have
        else "export the train form, whose logits are the same"
    )
    return (
        "MMPretrain's own code leaves out the squeeze-and-excitation of a deploy form, so it "
        f"computes other logits from this file; {advice}"
    )


def _lacks_gates(arch: str, form: str) -> bool:
    """Return whether MMPretrain's code leaves out this network's squeeze-and-excitation."""
    return arch.removesuffix("-qa") == "RepVGGD2se" and form == "deploy"
