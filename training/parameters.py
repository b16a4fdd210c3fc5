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


def depths(model: M.Module) -> dict[str, int]:
    """Return the depth of every parameter by name.

    It is 0 in the stem, 1, 2, ... in the blocks of the stages in order, and one more in what comes
    after them: classifiers, auxiliary heads and the layers before them.
    """
    block_of = {id(block): number for number, block in enumerate(model.blocks(), 1)}
    prefixes = {
        f"{path}.": block_of[id(m)] for path, m in model.named_modules() if id(m) in block_of
    }
    prefixes |= {"stage0.": 0, "stem": 0}  # as the families name it
    after = len(block_of) + 1
    return {
        name: next((depth for start, depth in prefixes.items() if name.startswith(start)), after)
        for name, _ in model.named_parameters()
    }
