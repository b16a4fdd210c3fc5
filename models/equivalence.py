"""A numerical check that a network computes the same function before and after fusion."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import megengine as mge
import megengine.module as M
import numpy as np

from .registry import create
from .reparam import fuse_in_place, to_deploy

TOLERANCE = 1e-5  # of the largest output; float32 itself leaves about 1e-6


class Equivalence(NamedTuple):
    """How far the deploy form's outputs are from the train form's, and the sizes of both."""

    train_parameters: int
    deploy_parameters: int
    max_abs_error: float
    relative_error: float  # the largest error over the largest output
    argmax_agreement: float  # share of images with the same best class (channel, for a block)
    batch_norms_left: int  # in the deploy form
    precision: str = "float32"  # of the outputs

    @property
    def holds(self) -> bool:
        """Whether the two forms compute the same function; False if an output is NaN."""
        return self.relative_error <= TOLERANCE and self.batch_norms_left == 0


def randomize(model: M.Module, example: np.ndarray, seed: int = 0) -> None:
    """Give every parameter and every running statistic of `model` a random value.

    Batch norms as initialized (mean 0, variance 1, scale 1, shift 0) would hide most errors of a
    fusion. Here each output channel of a convolution has a magnitude of its own, between 0.01 and
    1, so that some variances are small enough for a forgotten epsilon to show. The running
    statistics are those of the random network itself on `example` [N, C, H, W], moved so far that
    an error in any layer shows in the logits and rounding errors do not: on the 28 layers of
    RepVGGB1g4, dropping a mean in stage 1 changes the logits by 1 %, dropping an epsilon by 2e-4,
    and float32's rounding by less than 1e-6.
    """
    rng = np.random.default_rng(seed)

    def normal(tensor: mge.Tensor, std: float | np.ndarray) -> np.ndarray:
        return rng.standard_normal(tensor.shape, np.float32) * np.float32(std)

    norms = [m for m in model.modules() if isinstance(m, M.BatchNorm2d | M.BatchNorm1d)]
    for module in model.modules():
        if isinstance(module, M.Conv2d | M.Linear):
            weight = module.weight
            if isinstance(module, M.Linear):
                std = np.sqrt(1 / weight.shape[-1])
            else:
                magnitude = 10 ** rng.uniform(-2, 0, (*weight.shape[:-3], 1, 1, 1))
                std = magnitude * np.sqrt(2 / np.prod(weight.shape[-3:]))
            module.weight[...] = normal(weight, std)
            if module.bias is not None:
                module.bias[...] = normal(module.bias, 0.3)
        elif not isinstance(module, M.BatchNorm2d | M.BatchNorm1d):
            for scale in module.parameters(recursive=False):  # a layer scale
                scale[...] = rng.uniform(0.5, 1.5, scale.shape).astype(np.float32)
    for bn in norms:
        bn.weight[...] = rng.uniform(0.5, 1.5, bn.weight.shape).astype(np.float32)
        bn.bias[...] = normal(bn.bias, 0.3)

    momenta = [bn.momentum for bn in norms]
    for bn in norms:
        bn.momentum = 0.0  # share of the old value: the running statistics become the batch's
    with _modes_kept(model):
        model.train()
        model(mge.Tensor(example))
    for bn, momentum in zip(norms, momenta, strict=True):
        bn.momentum = momentum
        variance = bn.running_var.numpy()
        shift = 0.3 * np.sqrt(variance) * rng.standard_normal(variance.shape)
        bn.running_mean[...] = (bn.running_mean.numpy() + shift).astype(np.float32)
        bn.running_var[...] = (variance * rng.uniform(0.5, 3, variance.shape)).astype(np.float32)


def random_network(arch: str) -> M.Module:
    """Return a network in train form with random values (see `randomize`)."""
    model = create(arch)
    randomize(model, np.random.default_rng(0).standard_normal((8, 3, 64, 64), np.float32))
    return model


def random_images(model: M.Module, size: int) -> np.ndarray:
    """Return one or two images for `compare`, float32 [N, C, side, side].

    Their side is `size`, or `model.check_size` where that is more.
    """
    side = max(size, model.check_size)
    shape = (2 if model.check_size <= 64 else 1, model.in_chans, side, side)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def compare(model: M.Module, images: np.ndarray, consume: bool = False) -> Equivalence:
    """Fuse a copy of `model` and compare both forms on `images` [N, C, H, W], in evaluation mode.

    The modules keep their modes. With `consume` the model itself is fused, which takes half the
    memory.
    """
    train_parameters = _parameters(model)
    with _modes_kept(model):
        before = _outputs(model, images)
        if consume:
            deployed = model
            fuse_in_place(deployed)
        else:
            deployed = to_deploy(model)
        after = _outputs(deployed, images)
    with np.errstate(invalid="ignore"):  # infinite logits: the errors are then NaN
        error = np.abs(before - after).max()
        relative_error = error / np.abs(before).max() if error else error
    pooled_before, pooled_after = (y.reshape(*y.shape[:2], -1).mean(2) for y in (before, after))
    return Equivalence(
        train_parameters=train_parameters,
        deploy_parameters=_parameters(deployed),
        max_abs_error=float(error),
        relative_error=float(relative_error),
        argmax_agreement=agreement(pooled_before, pooled_after),
        batch_norms_left=sum("BatchNorm" in type(m).__name__ for m in deployed.modules()),
    )


def agreement(some: np.ndarray, others: np.ndarray) -> float:
    """Return the fraction of the rows of logits [N, classes] with the same class in both.

    Of a single class, the sign of its logit counts: whether its probability is above a half.
    """
    if some.shape[1] == 1:
        return float(((some > 0) == (others > 0)).mean())
    return float((some.argmax(1) == others.argmax(1)).mean())


@contextmanager
def _modes_kept(model: M.Module) -> Iterator[None]:
    """Give each module its mode again at the end; one that is new gets that of what it is in."""
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        yield
    finally:
        for name, module in model.named_modules():
            module.training = modes[name if name in modes else name.rpartition(".")[0]]


def _outputs(model: M.Module, images: np.ndarray) -> np.ndarray:
    model.eval()
    return model(mge.Tensor(images)).numpy().astype(np.float64)


def _parameters(model: M.Module) -> int:
    return sum(int(np.prod(parameter.shape)) for parameter in model.parameters())
