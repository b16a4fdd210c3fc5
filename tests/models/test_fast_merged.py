"""Merged batch norms of 1x1 convolutions: sums, statistics and gradients against float64."""

import models
from models import layers
from models.cpu import symbol

import megengine as mge
import megengine.module as M
import numpy as np
import pytest
from megengine.autodiff import GradManager

pytest.importorskip("numba", reason="the extra [fast] is not installed")

from models.cpu.fast import merging, network
from models.cpu.fast.executor import Code
from models.cpu.fast.writer import Writer

from tests.models.test_cpu import close
from tests.models.test_fast import norm_float64, program


def codes(function, shape):
    """Return the instructions for a function of images."""
    records = Writer(symbol.trace(function, shape).operations, True).records
    return [record.code for record in records.rows]


def branches(count, inputs, outputs, rng):
    """Return branches whose batch norms differ."""
    made = [layers.ConvBN(inputs, outputs, 1) for _ in range(count)]
    for branch in made:
        randomize(branch.bn, rng)
    return made


def randomize(norm, rng):
    for parameter in (norm.weight, norm.bias):
        parameter[:] = mge.Tensor(rng.standard_normal(parameter.shape).astype(np.float32))


@pytest.mark.parametrize("mean", [0, 3, 300])
@pytest.mark.parametrize(
    "shape, outputs, count, identity, residual, relu",
    [
        ((3, 5, 6, 7), 9, 2, False, False, True),
        ((3, 7, 5, 6), 7, 4, True, False, True),
        ((2, 24, 15, 9), 24, 4, True, True, True),
        ((2, 24, 15, 9), 24, 3, False, True, False),
        ((4, 40, 9, 9), 37, 4, False, False, False),
        ((70, 16, 2, 1), 16, 4, True, False, True),
        ((6, 1, 9, 9), 8, 3, False, False, True),  # one channel
        ((3, 70, 30, 31), 70, 3, True, True, True),  # several chunks
        ((3, 70, 30, 31), 66, 2, False, False, True),
    ],
    ids=str,
)
def test_merged_sum(shape, outputs, count, identity, residual, relu, mean, rng, monkeypatch):
    """Also with a mean that is large beside the deviation, where others lose digits too."""
    inputs = shape[1]
    convs = branches(count, inputs, outputs, rng)
    norms = [branch.bn for branch in convs]
    alone = layers.BatchNorm2d(inputs)
    randomize(alone, rng)
    x = (rng.standard_normal(shape) + mean * rng.standard_normal((1, inputs, 1, 1))).astype("f4")
    dy = rng.standard_normal((shape[0], outputs, *shape[2:])).astype(np.float32)

    def function(symbol):
        total = sum((branch(symbol) for branch in convs[1:]), convs[0](symbol))
        total = total + alone(symbol) if identity else total
        total = total + symbol if residual else total
        return layers.relu(total) if relu else total

    assert codes(function, shape).count(Code.MERGE) == 1
    parameters = [p for b in convs for p in (b.conv.weight, b.bn.weight, b.bn.bias)]
    parameters += [alone.weight, alone.bias] if identity else []
    weights = [b.conv.weight.numpy().astype(np.float64)[:, :, 0, 0] for b in convs]
    maps = [np.einsum("oi,nihw->nohw", weight, x.astype(np.float64)) for weight in weights]
    results = [norm_float64(map_, norm) for map_, norm in zip(maps, norms, strict=True)]
    of_identity = norm_float64(x, alone)
    y = sum(value for value, *_ in results)
    y = y + of_identity[0] if identity else y
    y = y + x if residual else y
    dy[np.abs(y) < 1e-2] = 0  # rounding does not decide whether a ReLU is open
    d = dy * (y > 0) if relu else dy.astype(np.float64)
    dx, expected = np.zeros(shape), []
    for weight, (_, gradient, _) in zip(weights, results, strict=True):
        dmap, dscale, dshift = gradient(d)
        dx += np.einsum("oi,nohw->nihw", weight, dmap)
        dw = np.einsum("nohw,nihw->oi", dmap, x - x.mean((0, 2, 3), keepdims=True, dtype="f8"))
        expected += [dw[:, :, None, None], dscale, dshift]
    if identity:
        one, *more = of_identity[1](d)
        dx += one
        expected += more
    dx = dx + d if residual else dx

    expected = [np.maximum(y, 0) if relu else y, dx, *expected]
    y, dx, gradients = program(function, x, dy, parameters)
    rows = x.size // inputs
    statistics = [stats for *_, stats in results] + [of_identity[2]] * identity
    for norm, (middle, var) in zip([*norms, alone][: len(statistics)], statistics, strict=True):
        close(norm.running_mean.numpy(), 0.1 * middle, 1e-5)
        close(norm.running_var.numpy(), 0.9 + 0.1 * var * rows / (rows - 1), 1e-5 * max(mean, 1))
    monkeypatch.setattr(merging, "_pointwise", lambda *_: None)
    unmerged_y, unmerged_dx, unmerged = program(function, x, dy, parameters)
    pairs = zip([y, dx, *gradients], [unmerged_y, unmerged_dx, *unmerged], expected, strict=True)
    for result, other, want in pairs:
        assert result.shape == want.shape
        error, usual = (np.abs(value - want).max() for value in (result, other))
        assert error <= max(1e-5 * np.abs(want).max(), 1e-5, 20 * usual)


def test_without_a_gradient_of_the_images(rng):
    convs, norm = branches(2, 8, 8, rng), layers.BatchNorm2d(8)
    parameters = [p for b in convs for p in (b.conv.weight, b.bn.weight, b.bn.bias)]
    parameters += [norm.weight, norm.bias]
    x, dy = (rng.standard_normal((4, 8, 9, 7)).astype(np.float32) for _ in range(2))

    def function(x):
        return layers.relu(convs[0](x) + convs[1](x) + norm(x) + x)

    *_, expected = program(function, x, dy, parameters)
    for parameter in parameters:
        parameter.grad = None
    grad_manager = GradManager().attach(parameters)
    with grad_manager:
        y = network.run(M.Identity(), symbol.trace(function, x.shape), mge.Tensor(x))
        grad_manager.backward(y, mge.Tensor(dy))
    for parameter, want in zip(parameters, expected, strict=True):
        close(parameter.grad.numpy(), want, 1e-6)


def test_inputs_that_nearly_cancel(rng):
    """Branches see differences of channels that are almost alike, with a tenth of the deviation."""
    convs = branches(2, 16, 8, rng)
    for branch in convs:
        weight = rng.standard_normal((8, 16, 1, 1))
        branch.conv.weight[:] = mge.Tensor((weight - weight.mean(1, keepdims=True)).astype("f4"))
    shared = rng.standard_normal((8, 1, 12, 12))
    x = (shared + 0.1 * rng.standard_normal((8, 16, 12, 12))).astype(np.float32)
    dy = rng.standard_normal((8, 8, 12, 12)).astype(np.float32)
    y, dx, _ = program(lambda x: convs[0](x) + convs[1](x), x, dy, [convs[0].conv.weight])
    weights = [b.conv.weight.numpy().astype(np.float64)[:, :, 0, 0] for b in convs]
    maps = [np.einsum("oi,nihw->nohw", weight, x.astype(np.float64)) for weight in weights]
    results = [norm_float64(m, b.bn) for m, b in zip(maps, convs, strict=True)]
    close(y, results[0][0] + results[1][0], 1e-4)
    gradients = [gradient(dy)[0] for _, gradient, _ in results]
    expected = [np.einsum("oi,nohw->nihw", w, d) for w, d in zip(weights, gradients, strict=True)]
    close(dx, sum(expected), 1e-4)


def pair(*arguments, **named):
    """Return the sum of two normed convolutions of 6 channels."""
    convs = [layers.Conv2d(6, 6, *arguments, **named) for _ in range(2)]
    norms = [layers.BatchNorm2d(6) for _ in range(2)]
    return lambda x: norms[0](convs[0](x)) + norms[1](convs[1](x))


def test_what_is_merged():
    """Not one convolution, few positions, other kernels, or a map that is used elsewhere too."""
    shape = (8, 6, 5, 5)
    first, second = layers.ConvBN(6, 6, 1), layers.ConvBN(6, 6, 1)
    strided, strided_too = layers.ConvBN(6, 6, 1, 2), layers.ConvBN(6, 6, 1, 2)
    wide, depthwise = layers.ConvBN(6, 6, 3), layers.ConvBN(6, 6, 1, 1, 6)
    norm, other_norm = layers.BatchNorm2d(6), layers.BatchNorm2d(6)

    def twice(x):
        y = first.conv(x)
        return first.bn(y) + second(x) + y

    functions = {
        "two": (lambda x: first(x) + second(x), shape, 1),
        "a residual": (lambda x: x + first(x) + second(x), shape, 1),
        "one": (lambda x: first(x) + norm(x), shape, 0),
        "few positions": (lambda x: first(x) + second(x), (1, 6, 2, 2), 0),
        "a 3x3 convolution": (lambda x: first(x) + wide(x), shape, 0),
        "a stride": (lambda x: strided(x) + strided_too(x), shape, 0),
        "depthwise": (lambda x: first(x) + depthwise(x), shape, 0),
        "of another map": (lambda x: first(x) + second(layers.relu(x)), shape, 0),
        "used twice": (twice, shape, 0),
        "the map twice": (lambda x: first(x) + second(x) + norm(x) + other_norm(x), shape, 1),
        "biases": (pair(1), shape, 0),
        "padding": (pair(1, 1, 1, bias=False), shape, 0),
        "two 3x3 convolutions": (pair(3, 1, 1, bias=False), shape, 0),
        "two depthwise": (pair(1, groups=6, bias=False), shape, 0),
    }
    for name, (function, size, expected) in functions.items():
        assert codes(function, size).count(Code.MERGE) == expected, name


def test_mobileone_merges_all_its_1x1_branches():
    model = models.create("MobileOneS0", 10, stride=16)
    model.train()
    units = sum(type(m).__name__ == "MobileOneUnit" for m in model.modules())
    found = codes(model._last_map, (64, 3, 32, 32)).count(Code.MERGE)
    assert found == (units - 1) // 2  # the stem and half of the others are not 1x1
