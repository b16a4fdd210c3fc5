"""The older MegEngine port (Asthestarsfalll/RepVGG-MegEngine): our own names, BGR images."""

import numpy as np

from data.transforms import BASECLS

from .dingxiaoh import PLUS_BLOCKS
from .keymap import BLOCKS, Source, Tensors, product

# with the names of parts where only a convolution and a batch norm are, unlike in our MobileOne
_BRANCHES = tuple(
    (f"{name}.{{p}}",) * 2
    for name in ("dense.conv", "dense.bn", "pointwise", "identity", "reparam")
)

REPVGG = Source(
    name="port",
    title="Asthestarsfalll/RepVGG-MegEngine",
    archs="RepVGG[ABD]*",
    rules=(
        *product(
            BLOCKS,
            (*_BRANCHES, ("se.{p}", "se.{p}")),
        ),
        ("linear.{p}", "linear.{p}"),
    ),
    preprocessing=BASECLS,
    pytorch=False,
)


def _fold_auxiliary_bias(tensors: Tensors) -> Tensors:
    """Subtract the biases of the auxiliary convolutions from the means of their batch norms."""
    tensors = dict(tensors)
    for key in [key for key in tensors if key.endswith("_aux.downsample.conv.bias")]:
        mean = key.replace("conv.bias", "bn.running_mean")
        if mean in tensors and tensors[mean].size == tensors[key].size:
            tensors[mean] = tensors[mean] - tensors.pop(key).reshape(np.shape(tensors[mean]))
    return tensors


REPVGG_PLUS = Source(
    name="port",
    title="Asthestarsfalll/RepVGG-MegEngine",
    archs="RepVGGplus*",
    rules=(
        *product(PLUS_BLOCKS, (*_BRANCHES, ("post_se.{p}", "se.{p}"))),
        ("linear.{p}", "linear.{p}"),
        ("{stage}_aux.fc.{p}", "{stage}_aux.linear.{p}"),
        ("{stage}_aux.downsample.{p}", "{stage}_aux.downsample.{p}"),
    ),
    preprocessing=BASECLS,
    pytorch=False,
    prepare=_fold_auxiliary_bias,
)
