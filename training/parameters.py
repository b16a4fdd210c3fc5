"""The kind of each parameter of a network, by which weight decay and clipping choose."""

from __future__ import annotations

from models.layers import SqueezeExcitation

import megengine.module as M


def kinds(model: M.Module) -> dict[str, str]:
    """Return the kind of every parameter by name, each one of parameter_kinds.KINDS."""
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
            elif not name.endswith("weight"):
                kind = "layer scale"
            elif name.startswith(tuple(gates)):
                kind = "squeeze-and-excitation"
            else:
                kind = "branch" if name in branches else "convolution"
            result[name] = kind
    return {name: result[name] for name, _ in model.named_parameters()}
