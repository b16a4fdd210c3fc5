"""BaseCls (megvii-research/basecls): pickles of arrays, networks trained on BGR images."""

from data.transforms import BASECLS

from .keymap import BLOCKS, Source, product

REPVGG = Source(
    name="basecls",
    title="BaseCls",
    archs="RepVGG[ABD]*",
    rules=(
        *product(
            BLOCKS,
            (
                ("rbr_dense.{p}", "dense.{p}"),
                ("rbr_1x1.{p}", "pointwise.{p}"),
                ("rbr_identity.{p}", "identity.{p}"),
                ("rbr_reparam.{p}", "reparam.{p}"),
                ("se.f_ex.0.{p}", "se.down.{p}"),
                ("se.f_ex.2.{p}", "se.up.{p}"),
            ),
        ),
        ("head.fc.{p}", "linear.{p}"),
    ),
    preprocessing=BASECLS,
    # BaseCls leaves the branches of its deployed networks where they were.
    copies=(("{p}.rbr_reparam.{q}", "{p}.rbr_dense.conv.weight"),),
    pytorch=False,
)

# The published pickles; repvgg_d2 has squeeze-and-excitation.
URL = "https://data.megengine.org.cn/research/basecls/models/repvgg/{0}/{0}.pkl"
PUBLISHED = {
    **{
        f"repvgg_{name.lower()}": f"RepVGG{name}"
        for letter, sizes in (
            ("A", ("0", "1", "2")),
            ("B", ("0", "1", "1g2", "1g4", "2", "2g2", "2g4", "3", "3g2", "3g4")),
        )
        for name in (letter + size for size in sizes)
    },
    "repvgg_d2": "RepVGGD2se",
}
