"""The original MobileOne (apple/ml-mobileone): PyTorch or .npz files, RGB images."""

from data.transforms import TORCHVISION

from .keymap import BLOCKS, Source, product

MOBILEONE = Source(
    name="apple",
    title="apple/ml-mobileone",
    archs="MobileOne*",
    rules=(
        *product(
            BLOCKS,
            (
                ("rbr_conv.{p}", "dense.{p}"),
                ("rbr_scale.{p}", "pointwise.{p}"),
                ("rbr_skip.{p}", "identity.{p}"),
                ("reparam_conv.{p}", "reparam.{p}"),
                ("se.reduce.{p}", "se.down.{p}"),
                ("se.expand.{p}", "se.up.{p}"),
            ),
        ),
        ("linear.{p}", "linear.{p}"),
    ),
    preprocessing=TORCHVISION,
)
