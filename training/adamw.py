"""AdamW in one pass over memory on a CPU, by models/cpu/fast/adamw.py, and elsewhere in a few."""

from __future__ import annotations

import math

from models import cpu
from models.cpu.elementwise_operators import blend, multiply_add

import megengine as mge
import megengine.functional as F
import megengine.optimizer


class AdamW(megengine.optimizer.Optimizer):
    """Adam with decoupled weight decay d.

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
        learnt, (b1, b2) = [param for param in params if param.grad is not None], self.betas
        kept, move, correction = 1 - lr * decay, -lr / (1 - b1**step), 1 / math.sqrt(1 - b2**step)
        means, squares = (
            [self._state[param][name] for param in learnt] for name in ("mean", "square")
        )
        if cpu.update_by_adamw(
            self, learnt, means, squares,
            kept=kept, move=move, betas=self.betas, correction=correction, eps=self.eps,
        ):  # fmt: skip
            return
        numbers = b1, 1 - b1, b2, 1 - b2, kept, move, correction, self.eps
        b1_, rest1, b2_, rest2, kept_, move_, correction_, eps_ = (
            mge.Tensor(number, dtype="float32") for number in numbers
        )
        for param, mean, square in zip(learnt, means, squares, strict=True):
            mean._reset(blend(mean, b1_, param.grad, rest1))
            square._reset(blend(square, b2_, param.grad * param.grad, rest2))
            size = multiply_add(F.sqrt(square), correction_, eps_)
            param._reset(blend(param, kept_, mean / size, move_))
