"""The kinds of parameters, and the kinds that each rule of weight decay names."""

from __future__ import annotations

KINDS = (
    "convolution",  # kernels, except for the next two
    "branch",  # 3x3 and 1x1 kernels for which their block has a custom L2 term
    "squeeze-and-excitation",  # kernels
    "linear",  # matrices
    "norm",  # scales of batch norms, except for the next
    "identity norm",  # scale of the batch norm that is a block's identity branch
    "bias",  # of convolutions and linear layers, and the shifts of batch norms
)
VECTORS = ("norm", "identity norm", "bias")  # one number per channel, whatever their shape

_KERNELS = ("convolution", "branch", "squeeze-and-excitation", "linear")
# name -> the kinds of parameters that are decayed
DECAY_RULES = {
    # DingXiaoH/RepVGG and BaseCls: by their names, which spare "bn" and "bias", not "identity"
    "repvgg": (*_KERNELS, "identity norm"),
    # timm, and so RepGhost and RepViT: nothing that has one dimension
    "timm": _KERNELS,
    "all": KINDS,
}
