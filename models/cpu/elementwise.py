"""Batch norm and ReLU with gradients that are fast on a CPU; stock MegEngine's are naive loops."""

from __future__ import annotations

from collections.abc import Callable

import megengine.functional as F
from megengine import Tensor
from megengine.autodiff import Function
from megengine.core._imperative_rt.core2 import apply
from megengine.core.ops.builtin import Elemwise, Reduce

_MULTIPLY_ADD = Elemwise(mode=Elemwise.Mode.FUSE_MUL_ADD3)  # a * b + c in one pass
_RELU = Elemwise(mode=Elemwise.Mode.RELU)
_RELU6_GRAD = Elemwise(mode=Elemwise.Mode.RELU6_GRAD)


def _reduce(x: Tensor, mode: str) -> Tensor:
    """[N, C, P] -> [1, C, 1], innermost axis first (F.sum over (0, 2, 3) takes 3x as long)."""
    first = apply(Reduce(mode=mode, axis=2), x)[0]
    return apply(Reduce(mode="sum", axis=0), first)[0]


class _BatchNorm(Function):
    """Built of elementwise operators and reductions (stock: 11 ms forward, 12 back on 4.8 MB)."""

    def __init__(self, eps: float, all_reduce: Callable[[Tensor], Tensor] | None):
        super().__init__()
        self.eps, self.all_reduce = eps, all_reduce

    def _total(self, *sums: Tensor) -> list[Tensor]:
        """Each [1, C, 1], over all processes."""
        if self.all_reduce is None:
            return list(sums)
        return F.split(self.all_reduce(F.concat(sums, axis=2)), len(sums), axis=2)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        n, c = x.shape[:2]
        self.shape, self.w_shape = x.shape, weight.shape
        x = x.reshape(n, c, -1)
        total = _reduce(x, "sum")
        self.count = n * x.shape[2]
        if self.all_reduce is not None:  # others may have another number of images
            counts = F.full_like(total, self.count)
            total, counts = self._total(total, counts)
            self.count = round(float(counts[0, 0, 0].numpy()))
        self.mean = total * (1 / self.count)
        self.centred = x - self.mean  # a second pass, as E[x^2] - E[x]^2 cancels
        self.var = self._total(_reduce(self.centred, "sum_sqr"))[0] * (1 / self.count)
        self.inv_std = (self.var + self.eps) ** -0.5
        self.scale = weight.reshape(1, c, 1) * self.inv_std
        y = apply(_MULTIPLY_ADD, self.centred, self.scale, bias.reshape(1, c, 1))[0]
        return y.reshape(self.shape)

    def backward(self, dy: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, c = self.shape[:2]
        dy = dy.reshape(n, c, -1)
        dbias = _reduce(dy, "sum")
        dweight = _reduce(dy * self.centred, "sum") * self.inv_std
        share = self.scale * (-1 / self.count)
        dw, db = self._total(dweight, dbias)
        dx = apply(_MULTIPLY_ADD, self.centred, share * self.inv_std * dw, share * db)[0]
        dx = apply(_MULTIPLY_ADD, dy, self.scale, dx)[0]
        del self.centred
        return dx.reshape(self.shape), dweight.reshape(self.w_shape), dbias.reshape(self.w_shape)


def batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    momentum: float = 0.9,
    eps: float = 1e-5,
    all_reduce: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Training-mode batch norm of [N, C, H, W]; weight, bias and statistics are [1, C, 1, 1].

    Replaces the running statistics' values; `momentum` is the weight of the old value.
    `all_reduce` sums a tensor over the processes whose images count together.
    """
    norm = _BatchNorm(eps, all_reduce)
    y = norm(x, weight, bias)
    new = 1 - momentum
    unbiased = new * norm.count / max(norm.count - 1, 1)
    for old, value, share in (running_mean, norm.mean, new), (running_var, norm.var, unbiased):
        old._reset(old * momentum + (value * share).reshape(old.shape))
    return y


class _Relu(Function):
    """Stock's backward is naive (2.0 ms on 0.8 MB); relu6's is not (0.2), and is equal below 6."""

    def forward(self, x: Tensor) -> Tensor:
        self.y = apply(_RELU, x)[0]
        return self.y

    def backward(self, dy: Tensor) -> Tensor:
        y, self.y = self.y, None
        return apply(_RELU6_GRAD, F.minimum(y, 1.0), dy)[0]


def relu(x: Tensor) -> Tensor:
    """max(x, 0)."""
    return _Relu()(x)
