"""The original RepVGG, RepVGGplus (DingXiaoH/RepVGG) and QARepVGG: PyTorch files, RGB images."""

from data.transforms import TORCHVISION

from .keymap import BLOCKS, Source, product

BRANCHES = (
    ("rbr_dense.{p}", "dense.{p}"),
    ("rbr_1x1.{p}", "pointwise.{p}"),
    ("rbr_identity.{p}", "identity.{p}"),
    ("rbr_reparam.{p}", "reparam.{p}"),
)
PLUS_BLOCKS = (
    ("stage0.", "stage0."),
    ("stage3_first.blocks.{i<12}.", "stage3.{i<12}."),
    ("stage3_second.blocks.{i}.", "stage3.{i+12}."),
    ("stage{n}.blocks.{i}.", "stage{n}.{i}."),
)

REPVGG = Source(
    name="repvgg",
    title="DingXiaoH/RepVGG",
    archs="RepVGG[ABD]*",
    rules=(
        *product(
            BLOCKS,
            (*BRANCHES, ("se.{p}", "se.{p}")),
        ),
        ("linear.{p}", "linear.{p}"),
    ),
    preprocessing=TORCHVISION,
)

# cxxgtxy/QARepVGG: a batch norm after the sum, and none in the 1x1 branch
QAREPVGG = Source(
    name="qarepvgg",
    title="cxxgtxy/QARepVGG",
    archs="RepVGG[ABD]*-qa",
    rules=(
        *product(
            BLOCKS,
            (*BRANCHES, ("bn.{p}", "bn.{p}"), ("se.{p}", "se.{p}")),
        ),
        ("linear.{p}", "linear.{p}"),
    ),
    preprocessing=TORCHVISION,
)

REPVGG_PLUS = Source(
    name="repvgg",
    title="DingXiaoH/RepVGG",
    archs="RepVGGplus*",
    rules=(
        *product(PLUS_BLOCKS, (*BRANCHES, ("post_se.{p}", "se.{p}"))),
        ("linear.{p}", "linear.{p}"),
        ("{stage}_aux.0.{p}", "{stage}_aux.downsample.{p}"),
        ("{stage}_aux.3.{p}", "{stage}_aux.linear.{p}"),
    ),
    preprocessing=TORCHVISION,
)
