"""The kinds of parameters, and the kinds that each rule of weight decay names."""

from __future__ import annotations

KINDS = (
    "convolution",  # kernels, except for the next two
    "branch",  # 3x3 and 1x1 kernels for which their block has a custom L2 term
    "squeeze-and-excitation",  # kernels
    "linear",  # matrices
    "norm",  # scales of batch norms, except for the next
    "identity norm",  # scale of the batch norm that is a block's identity branch
    "layer scale",  # factors of a residual branch's channels
    "bias",  # of convolutions and linear layers, and the shifts of batch norms
)
# one number per channel, whatever their shape
VECTORS = ("norm", "identity norm", "layer scale", "bias")

_KERNELS = ("convolution", "branch", "squeeze-and-excitation", "linear")
# name -> the kinds of parameters that are decayed
DECAY_RULES = {
    # DingXiaoH/RepVGG and BaseCls: by their names, which spare "bn" and "bias", not "identity"
    "repvgg": (*_KERNELS, "identity norm", "layer scale"),
    # timm, and so RepGhost, RepViT and FastViT: nothing that has one dimension; layer scales have 3
    "timm": (*_KERNELS, "layer scale"),
    "all": KINDS,
}
