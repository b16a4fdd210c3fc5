"""timm (huggingface/pytorch-image-models): safetensors or PyTorch files, RGB images."""

from data.transforms import TORCHVISION

from .keymap import Rules, Source, product


def _rules(pointwise: str) -> Rules:
    """Return the rules of both families, which differ only in the name of the 1x1 branch."""
    return (
        *product(
            (("stem.", "stage0."), ("stages.{n-1}.{i}.", "stage{n}.{i}.")),
            (
                ("conv_kxk.{p}", "dense.{p}"),
                (f"{pointwise}.{{p}}", "pointwise.{p}"),
                ("identity.{p}", "identity.{p}"),
                ("reparam_conv.{p}", "reparam.{p}"),
                ("attn.fc1.{p}", "se.down.{p}"),
                ("attn.fc2.{p}", "se.up.{p}"),
            ),
        ),
        ("head.fc.{p}", "linear.{p}"),
    )


REPVGG = Source(
    name="timm",
    title="timm",
    archs="RepVGG[ABD]*",
    rules=_rules("conv_1x1"),
    preprocessing=TORCHVISION,
)

MOBILEONE = Source(
    name="timm",
    title="timm",
    archs="MobileOne*",
    rules=_rules("conv_scale"),
    preprocessing=TORCHVISION,
)
