"""The optimizers and which parameters they decay."""

from __future__ import annotations

import math
from collections.abc import Collection

from models import cpu

import megengine as mge
import megengine.functional as F
import megengine.module as M
import megengine.optimizer
from megengine.core._imperative_rt.core2 import apply
from megengine.core.ops.builtin import Elemwise

from .parameter_kinds import DECAY_RULES
from .parameters import depths, kinds

_MULTIPLY_ADD = Elemwise(mode=Elemwise.Mode.FUSE_MUL_ADD3)  # a * b + c in one pass
_BLEND = Elemwise(mode=Elemwise.Mode.FUSE_MUL_ADD4)  # a * b + c * d in one pass


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
                grad = apply(_MULTIPLY_ADD, param, decay_tensor, grad)[0]
            if momentum:
                buffer = self._state[param]["momentum_buffer"]
                velocity = apply(_MULTIPLY_ADD, buffer, momentum_tensor, grad)[0]
                buffer._reset(velocity)
                if self.nesterov:
                    grad = apply(_MULTIPLY_ADD, velocity, momentum_tensor, grad)[0]
                else:
                    grad = velocity
            param._reset(apply(_MULTIPLY_ADD, grad, negative_lr, param)[0])


class AdamW(megengine.optimizer.Optimizer):
    """Adam with decoupled weight decay d, in eight elementwise passes per parameter.

    m <- b1 m + (1 - b1) g, v <- b2 v + (1 - b2) g^2, and in step t = 1, 2, ...
    p <- (1 - lr d) p - lr / (1 - b1^t) m / (sqrt(v / (1 - b2^t)) + eps). Source: Loshchilov and
    Hutter, Decoupled Weight Decay Regularization, ICLR 2019, whose defaults these are too.
    """

    def __init__(
        self,
        params: list[dict],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "step": 0})
        self.betas, self.eps = betas, eps

    def _create_state(self, param_group: dict) -> None:
        for param in param_group["params"]:
            self._add_state(param, "mean")
            self._add_state(param, "square")

    def _updates(self, param_group: dict) -> None:
        param_group["step"] += 1
        self._update(param_group["params"], param_group)

    def _update(self, params: list[mge.Tensor], param_group: dict) -> None:
        """Change those of a group's parameters that are in `params`."""
        lr, decay, step = (param_group[key] for key in ("lr", "weight_decay", "step"))
        (b1, b2), constant = self.betas, lambda value: mge.Tensor(value, dtype="float32")
        b1_tensor, b2_tensor, rest1, rest2 = map(constant, (b1, b2, 1 - b1, 1 - b2))
        correction, eps = constant(1 / math.sqrt(1 - b2**step)), constant(self.eps)
        kept, move = constant(1 - lr * decay), constant(-lr / (1 - b1**step))
        for param in params:
            grad = param.grad
            if grad is None:
                continue
            state = self._state[param]
            mean = apply(_BLEND, state["mean"], b1_tensor, grad, rest1)[0]
            square = apply(_BLEND, state["square"], b2_tensor, grad * grad, rest2)[0]
            state["mean"]._reset(mean)
            state["square"]._reset(square)
            size = apply(_MULTIPLY_ADD, F.sqrt(square), correction, eps)[0]
            param._reset(apply(_BLEND, param, kept, mean / size, move)[0])


class Muon(AdamW):
    """Muon for the kernels of ungrouped convolutions, and AdamW for all other parameters.

    A kernel's gradients g are taken as a matrix of [O, I * height * width] = [R, C] numbers, with
    decoupled weight decay d: v <- m v + g and
    p <- (1 - lr d) p - 0.2 lr sqrt(max(R, C)) orthogonal(g + m v), which moves p about as far as
    AdamW does at the same rate. Sources: Jordan et al., Muon: An optimizer for hidden layers in
    neural networks, 2024; the factor from Liu et al., Muon is Scalable for LLM Training, 2025
    (arXiv 2502.16982).

    Matrices with more than `LARGEST_SIDE` rows and columns are left to AdamW: their products would
    take as long as the rest of a step.
    """

    LARGEST_SIDE = 512

    def __init__(self, params: list[dict], lr: float, momentum: float = 0.9):
        super().__init__(params, lr)
        self.momentum = momentum

    def _create_state(self, param_group: dict) -> None:
        matrices, others = self._split(param_group["params"])
        for param in matrices:
            self._add_state(param, "velocity")
        super()._create_state({**param_group, "params": others})

    def _updates(self, param_group: dict) -> None:
        param_group["step"] += 1
        matrices, others = self._split(param_group["params"])
        self._update(others, param_group)
        lr, decay = param_group["lr"], param_group["weight_decay"]
        kept = mge.Tensor(1 - lr * decay, dtype="float32")
        for param in matrices:
            if param.grad is None:
                continue
            velocity = self._state[param]["velocity"] * self.momentum + param.grad
            self._state[param]["velocity"]._reset(velocity)
            rows = param.shape[0]
            matrix = (param.grad + velocity * self.momentum).reshape(rows, -1)
            move = mge.Tensor(-0.2 * lr * math.sqrt(max(matrix.shape)), dtype="float32")
            change = orthogonal(matrix).reshape(param.shape)
            param._reset(apply(_BLEND, param, kept, change, move)[0])

    def _split(self, params: list[mge.Tensor]) -> tuple[list[mge.Tensor], list[mge.Tensor]]:
        """Return the parameters that are matrices, and the others."""
        matrices, others = [], []
        for param in params:
            # batch norms have [1, C, 1, 1], grouped kernels five dimensions
            kernel = param.ndim == 4 and param.shape[0] > 1
            sides = (param.shape[0], math.prod(param.shape[1:]))
            (matrices if kernel and min(sides) <= self.LARGEST_SIDE else others).append(param)
        return matrices, others


def orthogonal(matrix: mge.Tensor) -> mge.Tensor:
    """Return a matrix with the singular vectors of `matrix` and singular values near 1.

    [R, C] -> [R, C]. Five Newton-Schulz steps with the coefficients of Jordan et al. (2024), after
    which most singular values are between 0.7 and 1.2; a matrix of zeros stays so.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.transpose(1, 0) if is_tall else matrix
    x = x / (F.sqrt((x * x).sum()) + 1e-12)
    # A step is x <- q x with q = a + b x x' + c (x x')^2. Everything that is multiplied to x is a
    # polynomial of x x', so that the steps can be done on these small matrices alone.
    identity, gram = F.eye(x.shape[0]), F.matmul(x, x, transpose_b=True)
    product = identity
    for _ in range(5):
        step = a * identity + b * gram + c * F.matmul(gram, gram)
        product = F.matmul(step, product)
        gram = F.matmul(step, F.matmul(gram, step))
    x = F.matmul(product, x)
    return x.transpose(1, 0) if is_tall else x


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
