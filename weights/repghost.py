"""The original RepGhost (ChengpengChen/RepGhost) and timm's, whose keys are the same."""

from data.transforms import Preprocessing

from .keymap import Source, product

_GHOST = product(
    (("ghost1.", "ghost1."), ("ghost2.", "ghost2.")),
    (
        ("primary_conv.0.{p}", "primary.conv.{p}"),
        ("primary_conv.1.{p}", "primary.bn.{p}"),
        ("cheap_operation.0.{p}", "dense.conv.{p}"),
        ("cheap_operation.1.{p}", "dense.bn.{p}"),
        ("fusion_bn.0.{p}", "identity.{p}"),
    ),
)
_RULES = (
    ("conv_stem.{p}", "stem.conv.{p}"),
    ("bn1.{p}", "stem.bn.{p}"),
    ("blocks.9.0.conv.{p}", "last.conv.{p}"),
    ("blocks.9.0.bn1.{p}", "last.bn.{p}"),
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
            ("conv_dw.{p}", "depthwise.conv.{p}"),
            ("bn_dw.{p}", "depthwise.bn.{p}"),
            ("se.conv_reduce.{p}", "se.down.{p}"),
            ("se.conv_expand.{p}", "se.up.{p}"),
            ("shortcut.0.{p}", "shortcut.0.conv.{p}"),
            ("shortcut.1.{p}", "shortcut.0.bn.{p}"),
            ("shortcut.2.{p}", "shortcut.1.conv.{p}"),
            ("shortcut.3.{p}", "shortcut.1.bn.{p}"),
        ),
    ),
)

REPGHOST, TIMM = (
    Source(name, title, "RepGhost*", _RULES, Preprocessing(interpolation="bicubic"))
    for name, title in (("repghost", "ChengpengChen/RepGhost"), ("timm", "timm"))
)
