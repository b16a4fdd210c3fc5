"""AdamW in few passes over memory."""

from __future__ import annotations

import math

from models.cpu.elementwise_operators import BLEND, MULTIPLY_ADD

import megengine as mge
import megengine.functional as F
import megengine.optimizer
from megengine.core._imperative_rt.core2 import apply


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
            mean = apply(BLEND, state["mean"], b1_tensor, grad, rest1)[0]
            square = apply(BLEND, state["square"], b2_tensor, grad * grad, rest2)[0]
            state["mean"]._reset(mean)
            state["square"]._reset(square)
            size = apply(MULTIPLY_ADD, F.sqrt(square), correction, eps)[0]
            param._reset(apply(BLEND, param, kept, mean / size, move)[0])
