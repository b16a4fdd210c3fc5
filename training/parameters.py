"""What kind of thing each parameter is: weight decay and gradient clipping ask."""

from __future__ import annotations

from models.layers import SqueezeExcitation

import megengine.module as M

KINDS = (
    "convolution",  # kernels, but for the next two
    "branch",  # 3x3 and 1x1 kernels for which their block has a custom L2 term
    "squeeze-and-excitation",  # kernels
    "linear",  # matrices
    "norm",  # scales of batch norms, but for the next
    "identity norm",  # scale of the batch norm that is a block's identity branch
    "bias",  # of convolutions and linear layers, and the shifts of batch norms
)
VECTORS = ("norm", "identity norm", "bias")  # one number a channel, whatever their shape


def kinds(model: M.Module) -> dict[str, str]:
    """Name of every parameter -> one of KINDS."""
    gates, branches = [], set()
    for path, module in model.named_modules():
        if isinstance(module, SqueezeExcitation):
            gates.append(path + ".")
        if hasattr(module, "custom_l2") and module.dense is not None:
            branches |= {path + ".dense.conv.weight", path + ".pointwise.conv.weight"}
    result = {}
    for path, module in model.named_modules():
        for name, _ in module.named_parameters(prefix=path or None, recursive=False):
            if name.endswith("bias"):
                kind = "bias"
            elif isinstance(module, M.BatchNorm1d | M.BatchNorm2d):
                kind = "identity norm" if path.endswith("identity") else "norm"
            elif isinstance(module, M.Linear):
                kind = "linear"
            elif name.startswith(tuple(gates)):
                kind = "squeeze-and-excitation"
            else:
                kind = "branch" if name in branches else "convolution"
            result[name] = kind
    return result
