"""Muon: orthogonalized updates of convolutions' kernels."""

from __future__ import annotations

import math

from models import cpu
from models.cpu.elementwise_operators import blend

import megengine as mge
import megengine.functional as F

from .adamw import AdamW

STEPS = ((3.4445, -4.7750, 2.0315),) * 5  # of Newton and Schulz, by Jordan et al. (2024)


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
        kernels, others = self._split(param_group["params"])
        self._update(others, param_group)
        lr, decay = param_group["lr"], param_group["weight_decay"]
        kept = mge.Tensor(1 - lr * decay, dtype="float32")
        params = [param for param in kernels if param.grad is not None]
        matrices = []
        for param in params:
            velocity = self._state[param]["velocity"] * self.momentum + param.grad
            self._state[param]["velocity"]._reset(velocity)
            matrix = param.grad + velocity * self.momentum
            matrices.append(matrix.reshape(param.shape[0], -1))
        changes = cpu.orthogonal(self, matrices, STEPS) or [orthogonal(m) for m in matrices]
        for param, change in zip(params, changes, strict=True):
            move = mge.Tensor(-0.2 * lr * math.sqrt(max(change.shape)), dtype="float32")
            param._reset(blend(param, kept, change.reshape(param.shape), move))

    def _split(self, params: list[mge.Tensor]) -> tuple[list[mge.Tensor], list[mge.Tensor]]:
        """Return the parameters that are matrices, and the others."""
        matrices: list[mge.Tensor] = []
        others: list[mge.Tensor] = []
        for param in params:
            (matrices if self._is_matrix(param.shape) else others).append(param)
        return matrices, others

    def _is_matrix(self, shape: tuple[int, ...]) -> bool:
        # batch norms have [1, C, 1, 1], grouped kernels five dimensions
        if len(shape) != 4 or shape[0] == 1:
            return False
        return min(shape[0], math.prod(shape[1:])) <= self.LARGEST_SIDE


def orthogonal(matrix: mge.Tensor) -> mge.Tensor:
    """Return a matrix with the singular vectors of `matrix` and singular values near 1.

    [R, C] -> [R, C]. After the Newton-Schulz steps most singular values are between 0.7 and 1.2; a
    matrix of zeros stays so.
    """
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.transpose(1, 0) if is_tall else matrix
    x = x / (F.sqrt((x * x).sum()) + 1e-12)
    # A step is x <- q x with q = a + b x x' + c (x x')^2. Everything that is multiplied to x is a
    # polynomial of x x', so that the steps can be done on these small matrices alone.
    identity, gram = F.eye(x.shape[0]), F.matmul(x, x, transpose_b=True)
    product = identity
    for a, b, c in STEPS:
        step = a * identity + b * gram + c * F.matmul(gram, gram)
        product = F.matmul(step, product)
        gram = F.matmul(step, F.matmul(gram, step))
    x = F.matmul(product, x)
    return x.transpose(1, 0) if is_tall else x
