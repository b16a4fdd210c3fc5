"""The optimizers and which parameters they decay."""

from __future__ import annotations

from collections.abc import Collection

from models import cpu
from models.cpu.elementwise_operators import multiply_add

import megengine as mge
import megengine.module as M
import megengine.optimizer

from .adamw import AdamW
from .muon import Muon
from .parameter_kinds import DECAY_RULES
from .parameters import depths, kinds


def parameter_groups(
    model: M.Module,
    weight_decay: float,
    custom_l2: bool = False,
    names: Collection[str] | None = None,
    rule: str = "repvgg",
    layer_decay: float = 1.0,
) -> list[dict]:
    """Return two groups of parameters, with and without decay: all, or those of the given `names`.

    With `custom_l2` the kernels for which the loss has a term do not decay, whatever the rule. With
    a `layer_decay` below 1 there are two such groups for each depth of parameters.depths, whose
    learning rates are multiplied by it for each step of depth from the end; this is the factor
    "lr_scale" of a group. Source: Clark et al., ELECTRA, ICLR 2020, on fine-tuning.
    """
    decayed_kinds = set(DECAY_RULES[rule]) - ({"branch"} if custom_l2 else set())
    kind = kinds(model)
    depth = depths(model) if layer_decay != 1 else dict.fromkeys(kind, 0)
    last = max(depth.values())
    groups: list[dict] = []
    for layer in range(last + 1):
        scale = {"lr_scale": layer_decay ** (last - layer)} if layer_decay != 1 else {}
        groups += [
            {"params": [], "weight_decay": weight_decay, **scale},
            {"params": [], "weight_decay": 0.0, **scale},
        ]
    for name, parameter in model.named_parameters():
        if names is None or name in names:
            spared = kind[name] not in decayed_kinds
            groups[2 * depth[name] + spared]["params"].append(parameter)
    return groups


class SGD(megengine.optimizer.SGD):
    """MegEngine's SGD, with the same arguments and state, in fewer passes over memory.

    v <- m v + (g + d p), then p <- p - lr v, or p - lr (g + d p + m v) with nesterov. On a CPU it
    is one compiled pass, by models/cpu/fast/momentum.py, where programs can be used.
    """

    def _updates(self, param_group: dict) -> None:
        learnt = [param for param in param_group["params"] if param.grad is not None]
        lr, decay, momentum = (float(param_group[k]) for k in ("lr", "weight_decay", "momentum"))
        if momentum:
            velocities = [self._state[param]["momentum_buffer"] for param in learnt]
            if cpu.update_by_momentum(
                self, learnt, velocities,
                lr=lr, decay=decay, momentum=momentum, nesterov=self.nesterov,
            ):  # fmt: skip
                return
        negative_lr, decay_tensor, momentum_tensor = map(mge.Tensor, (-lr, decay, momentum))
        for param in learnt:
            grad = param.grad
            if decay:
                grad = multiply_add(param, decay_tensor, grad)
            if momentum:
                buffer = self._state[param]["momentum_buffer"]
                velocity = multiply_add(buffer, momentum_tensor, grad)
                buffer._reset(velocity)
                grad = multiply_add(velocity, momentum_tensor, grad) if self.nesterov else velocity
            param._reset(multiply_add(grad, negative_lr, param))


def make(
    name: str,
    groups: list[dict],
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
) -> SGD | AdamW:
    """Return the optimizer "sgd", "adamw" or "muon" over `parameter_groups`.

    `momentum` is for SGD and Muon, `nesterov` for SGD alone.
    """
    if name == "adamw":
        return AdamW(groups, lr)
    if name == "muon":
        return Muon(groups, lr, momentum)
    return SGD(groups, lr=lr, momentum=momentum, nesterov=nesterov)


def set_learning_rate(optimizer: SGD | AdamW, lr: float) -> None:
    """Set the learning rate of the next step and those after it."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def set_weight_decay(optimizer: SGD | AdamW, weight_decay: float) -> None:
    """Set the weight decay of the groups of `parameter_groups` that decay: each first of two."""
    for group in optimizer.param_groups[::2]:
        group["weight_decay"] = weight_decay
