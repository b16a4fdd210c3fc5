"""Merged batch norms of 1x1 convolutions: sums, statistics and gradients against float64."""

import models
from models import layers
from models.cpu import symbol

import megengine as mge
import numpy as np
import pytest

pytest.importorskip("numba", reason="the extra [fast] is not installed")

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
    ],
    ids=str,
)
def test_merged_sum(shape, outputs, count, identity, residual, relu, mean, rng):
    """Also with a mean that is large beside the deviation, where digits could be lost."""
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

    got, got_dx, got_parameters = program(function, x, dy, parameters)
    tolerance = 1e-5 if mean < 10 else 3e-4  # float32 has 2e-5 of a deviation at such a mean
    close(got, np.maximum(y, 0) if relu else y, tolerance)
    close(got_dx, dx, 2 * tolerance)
    for one, other in zip(got_parameters, expected, strict=True):
        close(one, other, 2 * tolerance)
    rows = x.size // inputs
    statistics = [stats for *_, stats in results] + [of_identity[2]] * identity
    for norm, (middle, var) in zip([*norms, alone][: len(statistics)], statistics, strict=True):
        close(norm.running_mean.numpy(), 0.1 * middle, 1e-5)
        close(norm.running_var.numpy(), 0.9 + 0.1 * var * rows / (rows - 1), tolerance)


def test_what_is_merged():
    """One convolution, few positions, other kernels or a map that more is done with is not."""
    shape = (8, 6, 5, 5)
    first, second = layers.ConvBN(6, 6, 1), layers.ConvBN(6, 6, 1)
    strided, strided_too = layers.ConvBN(6, 6, 1, 2), layers.ConvBN(6, 6, 1, 2)
    wide, depthwise = layers.ConvBN(6, 6, 3), layers.ConvBN(6, 6, 1, 1, 6)
    norm = layers.BatchNorm2d(6)

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
    }
    for name, (function, size, expected) in functions.items():
        assert codes(function, size).count(Code.MERGE) == expected, name


def test_mobileone_merges_all_its_1x1_branches():
    model = models.create("MobileOneS0", 10, stride=16)
    model.train()
    units = sum(type(m).__name__ == "MobileOneUnit" for m in model.modules())
    found = codes(model._last_map, (64, 3, 32, 32)).count(Code.MERGE)
    assert found == (units - 1) // 2  # the stem and half of the others are not 1x1
