"""timm (huggingface/pytorch-image-models): safetensors or PyTorch files, RGB images."""

from data.transforms import Preprocessing

from .keymap import Source, product

REPVGG = Source(
    name="timm",
    title="timm",
    archs="RepVGG[ABD]*",
    rules=(
        *product(
            (("stem.", "stage0."), ("stages.{n-1}.{i}.", "stage{n}.{i}.")),
            (
                ("conv_kxk.{p}", "dense.{p}"),
                ("conv_1x1.{p}", "pointwise.{p}"),
                ("identity.{p}", "identity.{p}"),
                ("reparam_conv.{p}", "reparam.{p}"),
                ("attn.fc1.{p}", "se.down.{p}"),
                ("attn.fc2.{p}", "se.up.{p}"),
            ),
        ),
        ("head.fc.{p}", "linear.{p}"),
    ),
    preprocessing=Preprocessing(),
    sizes={"RepVGGD2se": (320, 1.0)},
)
