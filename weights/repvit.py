"""The original RepViT (THU-MIG/RepViT) and timm's: RGB images, bicubic interpolation."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from data.transforms import TORCHVISION

from .keymap import Rules, Source, Tensors, product

_PREPROCESSING = replace(TORCHVISION, interpolation="bicubic")


def _conv_bn(theirs: str, ours: str) -> Rules:
    """Return the rules of a convolution with its batch norm, and of the two fused."""
    return (
        (f"{theirs}.c.{{p}}", f"{ours}.conv.{{p}}"),
        (f"{theirs}.bn.{{p}}", f"{ours}.bn.{{p}}"),
        (f"{theirs}.weight", f"{ours}.reparam.weight"),
        (f"{theirs}.bias", f"{ours}.reparam.bias"),
    )


def _token_mixer(theirs: str) -> Rules:
    """Return the rules of a token mixer's branches, and of the convolution they are fused to."""
    return (
        (f"{theirs}.conv.c.{{p}}", "token.dense.conv.{p}"),
        (f"{theirs}.conv.bn.{{p}}", "token.dense.bn.{p}"),
        (f"{theirs}.conv1.weight", "token.pointwise.weight"),
        (f"{theirs}.conv1.bias", "token.pointwise.bias"),
        (f"{theirs}.conv1.c.{{p}}", "token.pointwise.conv.{p}"),
        (f"{theirs}.conv1.bn.{{p}}", "token.pointwise.bn.{p}"),
        (f"{theirs}.bn.{{p}}", "token.bn.{p}"),
        (f"{theirs}.weight", "token.reparam.weight"),
        (f"{theirs}.bias", "token.reparam.bias"),
    )


def _heads(main: str, distilled: str, fused: str) -> Rules:
    """Return the rules of the two classifiers, and of the one they are fused to."""
    return (
        (f"{main}.bn.{{p}}", "head.bn.{p}"),
        (f"{main}.l.{{p}}", "head.linear.{p}"),
        (f"{distilled}.bn.{{p}}", "head_dist.bn.{p}"),
        (f"{distilled}.l.{{p}}", "head_dist.linear.{p}"),
        (f"{fused}.weight", "linear.weight"),
        (f"{fused}.bias", "linear.bias"),
    )


def options(ours: Tensors) -> dict[str, Any]:
    """Return options of models.create: one head without distillation; the oldest token mixer."""
    chosen: dict[str, Any] = {}
    if not any(key.startswith("head_dist.") for key in ours):
        chosen["heads"] = 1
    if any(".token.pointwise.conv." in key for key in ours):
        chosen["legacy"] = True
    return chosen


# ---------------------------------------------------------------- timm

_TIMM_BLOCK = (
    *_token_mixer("token_mixer"),
    ("se.fc1.{p}", "se.down.{p}"),
    ("se.fc2.{p}", "se.up.{p}"),
    *_conv_bn("channel_mixer.conv1", "channel.expand"),
    *_conv_bn("channel_mixer.conv2", "channel.project"),
)

TIMM = Source(
    name="timm",
    title="timm",
    archs="RepViT*",
    rules=(
        *_conv_bn("stem.conv1", "stem1"),
        *_conv_bn("stem.conv2", "stem2"),
        *product(
            (
                ("stages.0.blocks.{i}.", "stage1.{i}."),
                ("stages.{n-1}.blocks.{i}.", "stage{n}.{i+2}."),
                ("stages.{n-1}.downsample.pre_block.", "stage{n}.0."),
            ),
            _TIMM_BLOCK,
        ),
        *product(
            (("stages.{n-1}.downsample.", "stage{n}.1."),),
            (
                *_conv_bn("spatial_downsample", "depthwise"),
                *_conv_bn("channel_downsample", "expand"),
                *_conv_bn("ffn.conv1", "channel.expand"),
                *_conv_bn("ffn.conv2", "channel.project"),
            ),
        ),
        *_heads("head.head", "head.head_dist", "head"),
    ),
    preprocessing=_PREPROCESSING,
    options=options,
)

# ---------------------------------------------------------------- the original


_ROW = re.compile(r"features\.(\d+)\.(.+)")


def _into_stages(tensors: Tensors) -> Tensors:
    """Rename features.7.token_mixer... to stages.2.1.token_mixer...

    Theirs numbers the blocks of all stages in one row. A stage begins with the block before the one
    of stride 2; that one has a second convolution in its token mixer, which becomes "down".
    """
    rows = {key: match for key in tensors if (match := _ROW.fullmatch(key)) is not None}
    numbers = {int(row[1]) for row in rows.values()} - {0}
    strided = {int(row[1]) for row in rows.values() if row[2].startswith("token_mixer.2.")}
    place, stage, index = {}, 1, 0
    for number in sorted(numbers):
        if number + 1 in strided:
            stage, index = stage + 1, 0
        place[number] = (stage, index)
        index += 1
    renamed = {}
    for key, tensor in tensors.items():
        if key in rows and (number := int(rows[key][1])) in place:
            rest = rows[key][2]
            if number in strided:
                rest = rest.replace("token_mixer.", "down.", 1)
            key = "stages.{}.{}.{}".format(*place[number], rest)
        renamed[key] = tensor
    return renamed


def _out_of_stages(tensors: Tensors) -> Tensors:
    """Rename back what `_into_stages` renamed."""
    places = sorted(
        {tuple(map(int, k.split(".")[1:3])) for k in tensors if k.startswith("stages.")}
    )
    numbers = {place: number for number, place in enumerate(places, 1)}
    renamed = {}
    for key, tensor in tensors.items():
        if key.startswith("stages."):
            _, stage, index, rest = key.split(".", 3)
            rest = rest.replace("down.", "token_mixer.", 1) if rest.startswith("down.") else rest
            key = f"features.{numbers[int(stage), int(index)]}.{rest}"
        renamed[key] = tensor
    return renamed


THU = Source(
    name="repvit",
    title="THU-MIG/RepViT",
    archs="RepViT*",
    rules=(
        *_conv_bn("features.0.0", "stem1"),
        *_conv_bn("features.0.2", "stem2"),
        *product(
            (("stages.{n}.{i}.", "stage{n}.{i}."),),
            (
                *_conv_bn("down.0", "depthwise"),
                *_conv_bn("down.2", "expand"),
                *_token_mixer("token_mixer.0"),
                ("token_mixer.1.fc1.{p}", "se.down.{p}"),
                ("token_mixer.1.fc2.{p}", "se.up.{p}"),
                *_conv_bn("channel_mixer.m.0", "channel.expand"),
                *_conv_bn("channel_mixer.m.2", "channel.project"),
            ),
        ),
        *_heads("classifier.classifier", "classifier.classifier_dist", "classifier"),
    ),
    preprocessing=_PREPROCESSING,
    prepare=_into_stages,
    options=options,
    restore=_out_of_stages,
    entries=("model", "model_ema"),
)
