"""State dicts of this project's networks, as `mge.save(net.state_dict(), path)` writes them.

The names are our own, and nothing in such a file says what the images went through.
"""

from typing import Any

from . import repvit
from .keymap import Rules, Source, product

NAME = "own"


def _source(archs: str, *rules: Rules, also: str = "", **more: Any) -> Source:
    return Source(
        name=NAME,
        title=f"a state dict in this project's names{also}",
        archs=archs,
        rules=sum(rules, ()),
        preprocessing=None,
        pytorch=False,
        **more,
    )


def _same(*templates: str) -> Rules:
    return tuple((template, template) for template in templates)


_STAGES = _same("stage{n}.{i}.")
_BLOCKS = (*_same("stage0."), *_STAGES)
_LEAVES = _same("pointwise.{p}", "identity.{p}", "reparam.{p}", "se.{p}")
_LINEAR = _same("linear.{p}")

REPVGG = _source(
    "RepVGG[ABD]*",
    product(_BLOCKS, (*_LEAVES, *_same("dense.conv.{p}", "dense.bn.{p}", "bn.{p}"))),
    _LINEAR,
    also=", or of RepVGG-MegEngine, whose names are the same",
)
REPVGG_PLUS = _source(
    "RepVGGplus*",
    product(_BLOCKS, (*_LEAVES, *_same("dense.conv.{p}", "dense.bn.{p}"))),
    _same("{stage}_aux.downsample.{p}", "{stage}_aux.linear.{p}"),
    _LINEAR,
)
MOBILEONE = _source(
    "MobileOne*",
    product(_BLOCKS, (*_LEAVES, *_same("dense.{p}"))),
    _LINEAR,
)
REPVIT = _source(
    "RepViT*",
    product(_STAGES, _same("token.{p}", "se.{p}", "channel.{p}", "depthwise.{p}", "expand.{p}")),
    _same("stem1.{p}", "stem2.{p}", "head.{p}", "head_dist.{p}"),
    _LINEAR,
    options=repvit.options,
)
REPGHOST = _source(
    "RepGhost*",
    product(
        (*_same("stage0.{i}."), *_STAGES),
        _same("ghost1.{p}", "ghost2.{p}", "depthwise.{p}", "se.{p}", "shortcut.{p}"),
    ),
    _same("stem.{p}", "last.{p}", "head.{p}"),
    _LINEAR,
)
FASTVIT = _source(
    "FastViT*",
    product(
        _same("stage0.{i}.", "last."),
        (*_LEAVES, *_same("dense.{p}")),
    ),
    product(_STAGES, _same("token.{p}", "ffn.{p}", "spread.{p}", "mix.{p}")),
    _LINEAR,
)
REPLKNET = _source(
    "RepLKNet*",
    product(_same("stage0.{i}."), _same("conv.{p}", "bn.{p}", "reparam.{p}")),
    product(
        _STAGES,
        _same("enter.{p}", "spread.{p}", "leave.{p}", "expand.{p}", "project.{p}")
        + _same("widen.{p}", "depthwise.{p}"),
    ),
    _same("norm.{p}"),
    _LINEAR,
)
