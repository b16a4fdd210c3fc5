"""models/cpu/fast: compiled programs against float64, against the other path, and their memory."""

import ctypes
import gc
import math
import os
import shutil
import subprocess
import sys
import threading
import time
import weakref
from contextlib import nullcontext
from pathlib import Path

import models
from models import cpu, equivalence, layers
from models.cpu import symbol

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np
import pytest
from megengine.autodiff import GradManager
from megengine.utils.naming import AutoNaming

from tests.models.test_cpu import close, conv_float64
from tests.support import ROOT, slow_but
from training import optimizer

pytest.importorskip("numba", reason="the extra [fast] is not installed")

from models import environment

if not environment.processor_has("avx2"):
    pytest.skip("the compiled programs need AVX2", allow_module_level=True)

from models.cpu.fast import cache, executor, libraries, memory, network
from models.cpu.fast.program import Program
from models.cpu.fast.writer import Writer

NETWORKS = ["RepVGGA0", "RepVGGA0-qa", "MobileOneS0", "RepViTM0_6", "RepGhost050", "FastViTT8"]


def program(function, x, dy, parameters, bfloat16=False):
    """Return output, input gradient and gradients of the parameters, by a program."""
    x = mge.Tensor(x)
    grad_manager = GradManager().attach([x, *parameters])
    with grad_manager:
        y = network.run(M.Identity(), symbol.trace(function, tuple(x.shape)), x, bfloat16)
        grad_manager.backward(y, mge.Tensor(dy))
    return y.numpy(), x.grad.numpy(), [parameter.grad.numpy() for parameter in parameters]


# n, c, o, (h, w), kernel, stride, padding, groups
WINOGRAD = [
    (16, 96, 96, (8, 8), 3, 1, 1, 1),
    (70, 96, 101, (4, 4), 3, 1, 1, 1),
    (11, 99, 96, (7, 13), 3, 1, 1, 1),  # tiles that maps do not fill, an even and an odd number
    (23, 192, 96, (11, 3), 3, 1, 1, 1),
]
CONVOLUTIONS = [
    (3, 6, 8, (9, 9), 3, 1, 1, 1),
    (3, 6, 8, (9, 7), 3, 2, 1, 1),
    (1, 5, 7, (8, 8), 3, 1, 1, 1),  # one image; channels that fill no vector
    (2, 3, 9, (17, 13), 3, 2, 1, 1),
    (4, 16, 24, (1, 1), 1, 1, 0, 1),
    (4, 16, 24, (1, 1), 3, 1, 1, 1),
    (2, 16, 24, (5, 6), 1, 2, 0, 1),
    (2, 16, 24, (6, 5), 3, 1, 1, 4),
    (2, 12, 24, (6, 5), 3, 2, 1, 2),
    *((2, 10, 10, (h, w), k, s, k // 2, 10)
      for h, w in ((1, 1), (7, 8), (12, 5)) for k in (1, 3, 5, 7) for s in (1, 2)),
    *((3, 10, o, (h, w), 7, s, 3, 10)  # several outputs of each channel
      for h, w in ((2, 3), (9, 8)) for o in (20, 30) for s in (1, 2)),
    (70, 16, 16, (4, 3), 7, 1, 3, 16),  # a kernel larger than the map, and many images
    (70, 16, 16, (5, 2), 7, 2, 3, 16),
    (2, 6, 6, (4, 4), 3, 1, 0, 6),
    (4, 3, 16, (112, 112), 1, 2, 0, 1),  # a stem, where jit_1x1 fails (see onednn_layers.py)
    (2, 3, 48, (64, 64), 1, 2, 0, 1),
    (2, 16, 24, (7, 7), 1, 1, 1, 1),  # a 1x1 kernel on padding
    (2, 1, 16, (9, 9), 3, 2, 1, 1),  # a stem for grey images
    *WINOGRAD,
    (15, 96, 96, (8, 8), 3, 1, 1, 1),  # too few tiles, and too few channels
    (16, 96, 95, (8, 8), 3, 1, 1, 1),
    (70, 96, 96, (6, 6), 3, 1, 1, 1),  # half of the last tiles are empty
]  # fmt: skip


def random_convolution(seed):
    """Return a case with numbers of channels of every kind, often very few."""
    rng = np.random.default_rng(seed)
    kernel, stride, groups = rng.choice([1, 3, 5, 7]), rng.choice([1, 2]), rng.choice([1, 1, 2, 3])
    c, o = groups * rng.choice([1, 2, 3, 4, 5, 8, 13, 16, 24, 48], 2)
    if rng.random() < 0.3:
        groups = o = c
    padding = rng.choice([kernel // 2, kernel // 2, 0, kernel // 2 + 1])
    n, h, w = rng.choice([1, 2, 5]), *rng.integers(max(1, kernel - 2 * padding), 34, 2)
    size = (int(h), int(w))
    return (*map(int, (n, c, o)), size, *map(int, (kernel, stride, padding, groups)))


@pytest.mark.parametrize("case", [*CONVOLUTIONS, *map(random_convolution, range(60))], ids=str)
def test_convolution(case, rng):
    n, c, o, size, kernel, stride, padding, groups = case
    module = layers.Conv2d(c, o, kernel, stride, padding, groups=groups, bias=False)
    x = rng.standard_normal((n, c, *size)).astype(np.float32)
    weight = module.weight.numpy()
    y, dx, dw, dy = conv_float64(
        x,
        weight,
        (stride, stride),
        (padding, padding),
        groups,
        lambda shape: rng.standard_normal(shape).astype(np.float32),
    )
    actual = program(module, x, dy, [module.weight])
    close(actual[0], y, 1e-5)
    close(actual[1], dx, 1e-5)
    close(actual[2][0], dw.reshape(weight.shape), 1e-5)


def random_dense_convolution(seed):
    """Return a case that is neither depthwise nor grouped."""
    n, c, o, *rest, _ = random_convolution(seed)
    return (n, c, o, *rest, 1)


def nearest_bfloat16(x):
    bits = x.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).astype(np.uint32).view(np.float32)


needs_bfloat16 = pytest.mark.skipif(
    not environment.processor_has("avx512_bf16"), reason="the processor has no bfloat16"
)


@needs_bfloat16
@pytest.mark.parametrize(
    "case",
    [
        *(case for case in CONVOLUTIONS if case[-1] == 1),
        (16, 16, 48, (1, 1), 3, 2, 1, 1),  # where oneDNN's gradient of the weights is wrong
        *map(random_dense_convolution, range(40)),
    ],
    ids=str,
)
def test_convolution_in_bfloat16(case, rng):
    """It is the convolution of rounded inputs, weights and gradients, summed in float32."""
    n, c, o, size, kernel, stride, padding, _ = case
    module = layers.Conv2d(c, o, kernel, stride, padding, bias=False)
    x = rng.standard_normal((n, c, *size)).astype(np.float32)
    weight = module.weight.numpy()
    y, dx, dw, dy = conv_float64(
        nearest_bfloat16(x),
        nearest_bfloat16(weight),
        (stride, stride),
        (padding, padding),
        1,
        lambda shape: nearest_bfloat16(rng.standard_normal(shape)),
    )
    actual = program(module, x, dy, [module.weight], bfloat16=True)
    close(actual[0], y, 1e-5)
    close(actual[1], dx, 1e-5)
    close(actual[2][0], dw.reshape(weight.shape), 1e-5)


@pytest.mark.parametrize("threads", ["2", pytest.param("4", marks=pytest.mark.slow)])
def test_convolutions_with_several_threads(threads):
    """Some of oneDNN's implementations wait for each other, and one of them for ever."""
    merged = Path(__file__).with_name("test_fast_merged.py")
    tests = [f"{__file__}::test_convolution", f"{__file__}::test_sum_of_batch_norms",
             f"{merged}::test_merged_sum"]  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-x", *tests]
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("channels, groups, copies", [(1, 1, 0), (3, 1, 0), (4, 4, 1)])
def test_maps_are_copied_for_several_outputs_of_a_channel(channels, groups, copies):
    module = layers.Conv2d(channels, 8, 3, 2, 1, groups=groups)
    trace = symbol.trace(module, (2, channels, 9, 9))
    codes = [record.code for record in Writer(trace.operations, False).records.rows]
    assert codes.count(executor.Code.REPEAT) == copies


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_where_a_convolution_is_winograds(case):
    n, c, o, size, kernel, stride, padding, groups = case
    module = layers.Conv2d(c, o, kernel, stride, padding, groups=groups, bias=False)
    trace = symbol.trace(module, (n, c, *size))
    codes = [record.code for record in Writer(trace.operations, False).records.rows]
    assert codes.count(executor.Code.FROM_TILES) == (case in WINOGRAD)


@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=needs_bfloat16)])
def test_convolution_with_bias(rng, bfloat16):
    module = layers.Conv2d(6, 8, 3, 1, 1)
    module.bias[:] = mge.Tensor(rng.standard_normal((1, 8, 1, 1)).astype(np.float32))
    module.weight[:] = mge.Tensor(nearest_bfloat16(module.weight.numpy()))
    x = nearest_bfloat16(rng.standard_normal((3, 6, 5, 4)))
    dy = nearest_bfloat16(rng.standard_normal((3, 8, 5, 4)))
    y, _, (_, db) = program(module, x, dy, [module.weight, module.bias], bfloat16)
    plain, *_ = conv_float64(x, module.weight.numpy(), (1, 1), (1, 1), 1, np.zeros)
    close(y, plain + module.bias.numpy(), 1e-5)
    close(db, dy.astype(np.float64).sum((0, 2, 3), keepdims=True), 1e-5)


class Scaled(layers.Conv2d):
    def forward(self, x):
        return self.calc_conv(x, self.weight * 0.5, self.bias)


def test_a_convolution_with_another_weight_than_its_own(rng):
    module = Scaled(6, 8, 3, 1, 1)
    x = rng.standard_normal((3, 6, 5, 4)).astype(np.float32)
    dy = rng.standard_normal((3, 8, 5, 4)).astype(np.float32)
    y, _, (dw, _) = program(module, x, dy, [module.weight, module.bias])
    half = 0.5 * module.weight.numpy()
    expected, _, half_dw, _ = conv_float64(x, half, (1, 1), (1, 1), 1, lambda shape: dy)
    close(y, expected, 1e-5)
    close(dw, 0.5 * half_dw.reshape(half.shape), 1e-5)


def norm_float64(x, norm):
    """Return the batch norm of x and a function for its gradients, in float64."""
    x = x.astype(np.float64)
    weight, bias = norm.weight.numpy().astype(np.float64), norm.bias.numpy().astype(np.float64)
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    inverse = 1 / np.sqrt(var + norm.eps)
    normed = (x - mean) * inverse

    def gradients(dy):
        count = x.size / x.shape[1]
        dweight = (dy * normed).sum((0, 2, 3), keepdims=True)
        dbias = dy.sum((0, 2, 3), keepdims=True)
        return weight * inverse * (dy - dbias / count - normed * dweight / count), dweight, dbias

    return normed * weight + bias, gradients, (mean, var)


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(2, 3, 1, 1), (1, 5, 7, 6), (3, 70, 30, 31)], ids=str)
def test_sum_of_batch_norms(shape, count, relu, rng):
    """Also the input itself is added, as in RepViT's mixer."""
    norms = [layers.BatchNorm2d(shape[1]) for _ in range(count)]
    for norm in norms:
        for parameter in (norm.weight, norm.bias):
            parameter[:] = mge.Tensor(rng.standard_normal((1, shape[1], 1, 1)).astype(np.float32))
    x = rng.standard_normal(shape).astype(np.float32) + 3
    dy = rng.standard_normal(shape).astype(np.float32)

    def function(symbol):
        total = symbol
        for norm in norms:
            total = total + norm(symbol)
        return layers.relu(total) if relu else total

    values, gradients, stats = zip(*(norm_float64(x, norm) for norm in norms), strict=True)
    y = x + sum(values)
    d = dy * (y > 0) if relu else dy.astype(np.float64)
    parts = [gradient(d) for gradient in gradients]
    parameters = [p for norm in norms for p in (norm.weight, norm.bias)]
    actual = program(function, x, dy, parameters)
    close(actual[0], np.maximum(y, 0) if relu else y, 1e-5)
    scale = max(np.abs(d).max(), *(np.abs(part[0]).max() for part in parts))
    assert np.abs(actual[1] - d - sum(part[0] for part in parts)).max() <= 1e-5 * scale
    for got, part in zip(zip(actual[2][::2], actual[2][1::2], strict=True), parts, strict=True):
        for one, expected in zip(got, part[1:], strict=True):
            close(one, expected, 1e-5)
    rows = x.size // shape[1]
    for norm, (mean, var) in zip(norms, stats, strict=True):
        close(norm.running_mean.numpy(), 0.1 * mean, 1e-5)
        unbiased = var * rows / max(rows - 1, 1)
        close(norm.running_var.numpy(), 0.9 + 0.1 * unbiased, 1e-5)


class Negative(M.Module):
    """A map less a map that it gives: x - 3 relu(x)."""

    def forward(self, x):
        y = layers.relu(x)
        return x - (y + y + y)


class LayerScale(M.Module):
    def __init__(self):
        super().__init__()
        self.scale = mge.Parameter(np.linspace(-2, 3, 12, dtype=np.float32).reshape(12, 1, 1))

    def forward(self, x):
        return layers.scale_channels(x, self.scale)


OPERATIONS = {
    **{name: getattr(layers, name) for name in ("relu", "gelu", "sigmoid", "hard_sigmoid", "mean")},
    "se": layers.SqueezeExcitation(12, 4, gate=layers.hard_sigmoid),
    "difference": Negative(),
    "layer scale": LayerScale(),
}


@pytest.mark.parametrize("kind", OPERATIONS)
def test_other_operations_are_megengines(kind, rng):
    x = rng.standard_normal((3, 12, 5, 6)).astype(np.float32) * 3
    function = OPERATIONS[kind]
    parameters = list(function.parameters()) if isinstance(function, M.Module) else []
    tensor = mge.Tensor(x)
    grad_manager = GradManager().attach([tensor, *parameters])
    with cpu.using("stock"), grad_manager:
        y = function(tensor)
        dy = rng.standard_normal(y.shape).astype(np.float32)
        grad_manager.backward(y, mge.Tensor(dy))
    expected = [y, tensor.grad, *(p.grad for p in parameters)]
    for parameter in parameters:
        parameter.grad = None
    output, dx, others = program(function, x, dy, parameters)
    for got, want in zip([output, dx, *others], expected, strict=True):
        close(got, want.numpy(), 1e-5)


def gradients(arch, path, size=64, batch=4, steps=1, seed=0, within=nullcontext):
    """Return logits, gradients by name and state of a new network after forward passes."""
    mge.random.seed(seed)
    model = models.create(arch, 10)
    model.train()
    for module in model.modules():
        if isinstance(module, M.Dropout):
            module.drop_prob = 0.0
    rng = np.random.default_rng(1 + seed)
    x = rng.standard_normal((batch, 3, size, size)).astype(np.float32)
    weights = mge.Tensor(rng.standard_normal((batch, 10)).astype(np.float32))
    grad_manager = GradManager().attach(model.parameters())
    with cpu.using(path), within():
        for _ in range(steps):
            with grad_manager:
                logits = model(mge.Tensor(x))
                logits = sum(logits.values()) if isinstance(logits, dict) else logits
                grad_manager.backward((logits * weights).sum())
    grads = {name: p.grad.numpy() for name, p in model.named_parameters()}
    return logits.numpy(), grads, model.state_dict()


def distances(gradients, others):
    """Return the distance of each tensor from another, relative to the norm of that.

    Gradients that are nearly zero are judged by the largest norm of the network.
    """
    largest = max(np.linalg.norm(other) for other in others.values())
    return {
        name: np.linalg.norm(gradients[name] - other) / max(np.linalg.norm(other), 1e-3 * largest)
        for name, other in others.items()
    }


@pytest.mark.parametrize("arch", slow_but(["RepVGGA0", "RepGhost050", "FastViTT8"], NETWORKS))
def test_a_network_is_that_of_the_other_paths(arch):
    """It is as near to one as that is to MegEngine's own operators.

    All round differently, and a ReLU that is open or shut for it changes gradients behind it: by
    less than 0.1, and in one of a few networks there is none.
    """
    for seed in range(8):
        (logits, grads, state), (others, other_grads, other_state), (_, stock_grads, _) = (
            gradients(arch, path, seed=seed) for path in ("fast", "matmul", "stock")
        )
        close(logits, others, 1e-4)
        rounding = max(distances(stock_grads, other_grads).values())
        distance = max(distances(grads, other_grads).values())
        assert rounding < 0.15 and distance < max(0.1, 2 * rounding)
        for name, value in other_state.items():
            np.testing.assert_allclose(state[name], value, rtol=1e-4, atol=1e-4, err_msg=name)
        if distance <= max(3e-3, 2 * rounding):
            return
    pytest.fail("gradients differ in all networks")


def trained(arch, steps, size=32, batch=4):
    """Return the parameters and statistics of a new network after some steps."""
    mge.random.seed(0)
    model = models.create(arch, 10)
    model.train()
    rng = np.random.default_rng(2)
    grad_manager = GradManager().attach(model.parameters())
    sgd = optimizer.make("sgd", optimizer.parameter_groups(model, 1e-4), lr=0.05)
    with cpu.using("fast"):
        for _ in range(steps):
            x = mge.Tensor(rng.standard_normal((batch, 3, size, size)).astype(np.float32))
            with grad_manager:
                logits = model(x)
                logits = sum(logits.values()) if isinstance(logits, dict) else logits
                grad_manager.backward(F.nn.cross_entropy(logits, labels(batch)))
            sgd.step().clear_grad()
    return [p.numpy() for p in [*model.parameters(), *model.buffers()]]


def labels(batch):
    return mge.Tensor(np.arange(batch) % 10, "int32")


class Poisoned(memory.Pool):
    """A pool whose free blocks are full of NaN."""

    def release(self, block):
        for address, shape in zip(block.addresses.tolist(), self.shapes, strict=True):
            ctypes.memset(address, 0xFF, 4 * math.prod(shape))
        super().release(block)


class Fresh(memory.Pool):
    """A pool that uses no memory twice."""

    def release(self, block):
        pass


@pytest.mark.parametrize("arch", ["RepGhost050", "RepViTM0_6", "FastViTT8"])
def test_no_memory_is_used_again_too_early(arch, monkeypatch):
    """REPARAM_STRESS_STEPS makes it longer, for a run by hand."""
    steps = int(os.environ.get("REPARAM_STRESS_STEPS", "12"))
    results = []
    for pool in (Poisoned, Fresh):
        cache._recent.clear()
        monkeypatch.setattr(memory, "Pool", pool)
        results.append(trained(arch, steps))
    cache._recent.clear()
    for poisoned, fresh in zip(*results, strict=True):
        assert np.isfinite(fresh).all()
        np.testing.assert_array_equal(poisoned, fresh)


BITS = """
import hashlib, sys
from tests.models.test_fast import gradients
logits, grads, state = gradients(sys.argv[1], "fast", steps=3)
arrays = [logits, *grads.values(), *state.values()]
print(hashlib.sha256(b"".join(array.tobytes() for array in arrays)).hexdigest())
"""


@pytest.mark.parametrize("arch", ["RepVGGA0", "RepGhost050", "MobileOneS0"])
@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_bits_are_those_of_another_process(arch, threads):
    command = [sys.executable, "-W", "ignore", "-c", BITS, arch]
    environment = {**os.environ, "OMP_NUM_THREADS": threads}
    one, two = (
        subprocess.run(
            command, capture_output=True, text=True, cwd=ROOT, check=True, env=environment
        ).stdout
        for _ in range(2)
    )
    assert len(one) == 65 and one == two


def test_the_number_of_threads_is_its_own(monkeypatch):
    """Others set it, numba among them; oneDNN divides its sums by it."""
    openmp = ctypes.CDLL("libgomp.so.1")
    numbers = []
    run = executor.run
    monkeypatch.setattr(
        executor, "run", lambda *a: numbers.append(openmp.omp_get_max_threads()) or run(*a)
    )
    openmp.omp_set_num_threads(libraries.threads() + 2)
    gradients("RepGhost050", "fast", size=32, batch=2)
    assert numbers == [libraries.threads()] * 2


def a_step(model, x, grad_manager):
    with grad_manager:
        y = model(x)
        grad_manager.backward(y.sum())
    values = [p.grad.numpy() for p in model.parameters()]
    for parameter in model.parameters():
        parameter.grad = None
    return values


def test_two_forward_passes_before_the_backward_pass(rng):
    """Each has memory of its own."""
    mge.random.seed(0)
    model = models.create("RepGhost050", 10)
    model.train()
    model.drop.drop_prob = 0.0
    one, two = (
        mge.Tensor(rng.standard_normal((2, 3, 32, 32)).astype(np.float32)) for _ in range(2)
    )
    grad_manager = GradManager().attach(model.parameters())
    with cpu.using("fast"):
        separate = [a_step(model, x, grad_manager) for x in (one, two)]
        with grad_manager:
            first, second = model(one), model(two)
            grad_manager.backward((first + second).sum())
    for i, parameter in enumerate(model.parameters()):
        close(parameter.grad.numpy(), separate[0][i] + separate[1][i], 1e-4)


@pytest.fixture
def model():
    model = models.create("RepGhost050", 10)
    model.train()
    return model


@pytest.mark.parametrize("path", ["matmul", "fast"])
def test_two_gradient_managers_record_one_forward_pass(path, model, rng):
    x = mge.Tensor(rng.standard_normal((2, 3, 32, 32)).astype(np.float32))
    parameters = list(model.parameters())
    one, two = (GradManager().attach(parameters) for _ in range(2))
    with cpu.using(path), one | two:
        assert not cpu.is_used()
        y = model(x).sum()
        found = []
        for grad_manager in (two, one):
            grad_manager.backward(y)
            found.append([parameter.grad.numpy() for parameter in parameters])
            for parameter in parameters:
                parameter.grad = None
        assert cpu.is_used()
    for first, second in zip(*found, strict=True):
        close(first, second, 1e-6)


def used(model, monkeypatch, x=None):
    """Return whether a forward pass of the model is computed by a program."""
    calls = []
    monkeypatch.setattr(network, "run", lambda *a, run=network.run: calls.append(1) or run(*a))
    with cpu.using("fast"):
        model(mge.Tensor(np.zeros((2, 3, 32, 32), np.float32)) if x is None else x)
    return bool(calls)


def test_a_network_in_training_is_compiled(model, monkeypatch):
    assert used(model, monkeypatch)


def test_what_is_left_to_the_other_path(model, monkeypatch):
    seen = []
    hook = model.stage2[0].register_forward_hook(lambda module, x, y: seen.append(y.shape))
    assert not used(model, monkeypatch)
    assert seen == [(2, 20, 4, 4)]
    hook.remove()
    norm = model.stage1[0].ghost1.primary.bn
    norm.all_reduce = lambda tensor: tensor
    assert not used(model, monkeypatch)
    norm.all_reduce = None
    norm.freeze = True
    assert not used(model, monkeypatch)
    norm.freeze = False
    norm.eval()
    assert not used(model, monkeypatch)
    norm.train()
    assert used(model, monkeypatch)
    model.eval()
    assert not used(model, monkeypatch)


FUSED = ("RepVGGA0-qa", "RepVGGD2se", "MobileOneS0", "RepViTM0_6", "RepGhost050", "FastViTT8")


@pytest.mark.parametrize("arch", slow_but(["MobileOneS0", "RepGhost050", "FastViTT8"], FUSED))
def test_a_fused_network_is_evaluated_by_a_program(arch, monkeypatch, rng):
    trained = models.create(arch, 10)
    images = rng.standard_normal((6, 3, 64, 64)).astype(np.float32)
    equivalence.randomize(trained, images)
    model = models.to_deploy(trained)
    model.eval()
    expected = model(mge.Tensor(images)).numpy()
    for count in (6, 2, 6):
        x = mge.Tensor(images[:count])
        assert not model.is_compiled(x) and not used(model, monkeypatch, x)
        with cpu.using("fast"), cpu.evaluation():
            assert model.is_compiled(x) and used(model, monkeypatch, x)
            logits = model(x).numpy()
            assert np.array_equal(model(x).numpy(), logits)
        assert np.abs(logits - expected[:count]).max() <= 1e-5 * np.abs(expected).max()
    trained.eval()
    with cpu.evaluation():
        assert not used(trained, monkeypatch, x)  # its batch norms are not those of a training


def test_a_fused_network_has_gradients_during_an_evaluation(model, rng):
    deployed = models.to_deploy(model)
    deployed.eval()
    x = mge.Tensor(rng.standard_normal((2, 3, 32, 32)).astype(np.float32))
    parameters = list(deployed.parameters())
    for attached in ([x], parameters):
        with cpu.evaluation(), GradManager().attach(attached) as grad_manager:
            assert not deployed.is_compiled(x)
            grad_manager.backward(deployed(x).sum())
            assert deployed.is_compiled(x)
        assert all(tensor.grad is not None for tensor in attached)


def test_a_program_without_a_backward_pass_takes_less_memory(model):
    deployed = models.to_deploy(model)
    arguments = symbol.trace(deployed._last_map, (4, 3, 64, 64)).operations, False
    written = [Writer(*arguments, back) for back in (True, False)]
    both, forward = (Program(w.records, w.slots.ranges, w.split)._arena for w in written)
    assert forward.size < both.size / 3


def test_a_new_module_with_a_hook_is_seen(model, monkeypatch):
    assert used(model, monkeypatch)
    new = layers.FusibleConvBN(3, 8, 3, 2)
    seen = []
    new.register_forward_hook(lambda module, x, y: seen.append(y))
    model.stem = new
    assert not used(model, monkeypatch)
    assert isinstance(seen[-1], mge.Tensor)


class Wrapper(M.Module):
    def __init__(self, wrapped):
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x):
        return self.wrapped(x)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_hook_of_a_module_without_parameters_is_seen(model, monkeypatch, register):
    assert used(model, monkeypatch)
    call, seen = M.Module.__call__, []
    model.stem = Wrapper(model.stem)
    assert used(model, monkeypatch)
    hook = getattr(model.stem, register)(lambda module, *given: seen.append(given[-1]))
    assert not used(model, monkeypatch)
    tensors = seen[-1] if isinstance(seen[-1], tuple) else seen[-1:]
    assert len(seen) == 1 and isinstance(tensors[0], mge.Tensor)
    hook.remove()
    assert used(model, monkeypatch)
    assert M.Module.__call__ is call


def test_a_hook_outside_of_the_program_is_called(model, monkeypatch):
    seen = []
    model.linear.register_forward_hook(lambda module, x, y: seen.append(y))
    assert used(model, monkeypatch)
    assert isinstance(seen[0], mge.Tensor)


def test_a_module_with_a_hook_can_be_replaced_by_one_without(model, monkeypatch):
    model.stem.register_forward_hook(lambda module, x, y: None)
    assert not used(model, monkeypatch)
    model.stem = layers.FusibleConvBN(3, 8, 3, 2)
    assert used(model, monkeypatch)


def test_other_channels_are_refused_as_without_programs(model, monkeypatch, rng):
    """A program would read beyond the end of the parameters."""
    for shape in ((2, 4, 32, 32), (2, 1, 32, 32)):
        x = mge.Tensor(rng.standard_normal(shape).astype(np.float32))
        errors = []
        for path in ("stock", "fast"):
            with pytest.raises(Exception) as caught, cpu.using(path):
                model(x).numpy()
            errors.append(caught.type)
        assert errors[0] is errors[1]
    narrow = symbol.Trace((2, 1, 4, 4)).input
    for module in (layers.Conv2d(3, 8, 3), layers.BatchNorm2d(3)):
        module.train()
        with pytest.raises(symbol.Untraceable, match="3 channels were expected"):
            module(narrow)


def test_parameters_of_another_type_are_left_to_the_other_path(model):
    model.load_state_dict(
        {key: value.astype(np.float16) for key, value in model.state_dict().items()}
    )
    assert not model.is_compiled(mge.Tensor(np.zeros((2, 3, 32, 32), np.float32)))


def test_a_failed_trace_leaves_no_names(rng):
    """MegEngine names what is traced later by the modules that it has entered and not left."""
    block = models.create("FastViTT8", 10).stage1[0]
    block.train()
    before = list(AutoNaming.scopes)
    with pytest.raises(symbol.Untraceable):
        symbol.trace(lambda s: block(s.numpy()), (2, 48, 8, 8))

    def fails_inside(s):
        block.register_forward_hook(lambda module, x, y: y.numpy())
        return block(s)

    with pytest.raises(symbol.Untraceable):
        symbol.trace(fails_inside, (2, 48, 8, 8))
    assert AutoNaming.scopes == before


def test_where_compiled_code_is_kept(monkeypatch, tmp_path):
    environment, read_only = tmp_path / "environment", []
    environment.mkdir()
    monkeypatch.setattr(sys, "prefix", str(environment))
    monkeypatch.delenv("NUMBA_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    access = os.access  # root, who may run the tests, can write everywhere
    monkeypatch.setattr(
        os, "access", lambda path, mode: path not in read_only and access(path, mode)
    )
    compiled = libraries._cache_folder()
    assert compiled.parent == environment / "numba"
    users = tmp_path / "reparam-megengine" / "numba" / compiled.name
    read_only[:] = [environment]
    assert libraries._cache_folder() == users
    (compiled / "fast").mkdir(parents=True)
    (compiled / "fast" / "kernel").touch()
    assert libraries._cache_folder() == compiled  # it can be written, though nothing beside it
    read_only[:] = [compiled]
    folder = libraries._cache_folder()
    assert folder == users
    assert {file.name for file in folder.rglob("*")} == {"fast", "kernel"}
    assert libraries._cache_folder() == folder  # and nothing beside it
    assert list(folder.parent.iterdir()) == [folder]
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(libraries.NotAvailable, match="there is no folder for compiled code .* set"):
        libraries._cache_folder()


@pytest.mark.parametrize(
    "given, expected",
    [({}, "passive 10000"), ({"OMP_WAIT_POLICY": "active"}, "active None"),
     ({"GOMP_SPINCOUNT": "5"}, "passive 5")],
)  # fmt: skip
def test_how_long_threads_wait_awake(given, expected):
    names = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
    code = f"""from models.cpu.fast import libraries; import os; libraries.load()
print(*(os.environ.get(name) for name in {names}))"""
    inherited = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, check=True, env=inherited | given
    )
    assert done.stdout == f"{expected}\n"


def test_a_folder_for_compiled_code_can_be_given(monkeypatch, tmp_path):
    """What other sources were compiled to is in another folder below it."""
    name = libraries._cache_folder().name
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    assert libraries._cache_folder() == tmp_path / name
    code = "from models.cpu import fast; import numba; print(numba.config.CACHE_DIR)"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == f"{tmp_path / name}\n"


def test_compiled_code_that_cannot_be_read_is_said_once(tmp_path):
    """The other path computes then; a process of its own, as this one has read it."""
    folder = libraries._cache_folder()
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    for file in copy.rglob("*.nbi"):
        file.write_bytes(file.read_bytes()[:100])
    assert_said_once({"NUMBA_CACHE_DIR": str(tmp_path)}, "")


@pytest.mark.slow
def test_compilation_that_was_interrupted_goes_on(tmp_path):
    """The third process reads what the second one has compiled, with what it read of the first."""
    folder = libraries._cache_folder()
    shutil.copytree(folder, tmp_path / folder.name)
    for file in tmp_path.rglob("executor.run*"):
        file.unlink()
    code = """
from models.cpu.fast import executor
from tests.models.test_fast import gradients
gradients("RepGhost050", "fast", size=32, batch=2)
"""
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=True,
            env={**os.environ, "NUMBA_CACHE_DIR": str(tmp_path)},
        )  # fmt: skip
        assert list(tmp_path.rglob("executor.run*.nbc"))


def test_a_numba_that_cannot_be_used_is_said_once(tmp_path):
    assert_said_once({"NUMBA_DISABLE_JIT": "1"}, "NUMBA_DISABLE_JIT is set")
    (tmp_path / "numba.py").write_text("raise RuntimeError('it needs\\n\\nanother NumPy')")
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    assert_said_once(paths, "numba cannot be imported: it needs another NumPy")


def assert_said_once(environment, reason):
    """Look in another process, in which the other path computes."""
    code = "from models.cpu import fast; print(fast.available(), fast.available())"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, cwd=ROOT,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "False False\n")
    said = (
        f"training uses REPARAM_CPU=matmul, as the faster REPARAM_CPU=fast cannot be used: {reason}"
    )
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "function, reason",
    [
        (lambda s: [s, layers.relu(s)], "does not return one map"),
        (lambda s: (layers.gelu(s), layers.relu(s))[1], "is not used"),
        (lambda s: (layers.relu(s), layers.gelu(s))[0], "is not used"),
        (lambda s: (layers.relu(s), layers.relu(s) * layers.mean(s))[0], "is not used"),
    ],
)
def test_one_map_is_computed_and_nothing_else(function, reason):
    with pytest.raises(symbol.Untraceable, match=reason):
        symbol.trace(function, (1, 2, 3, 4))


def test_what_a_symbol_cannot_record():
    trace = symbol.Trace((1, 2, 3, 4))
    with pytest.raises(symbol.Untraceable, match="asks for numpy"):
        trace.input.numpy()
    other = mge.Tensor(np.zeros((3, 1, 1), np.float32))
    for function in (
        lambda s: s + 1, lambda s: s - 1, lambda s: s * s, lambda s: 2 * s, lambda s: s * other
    ):  # fmt: skip
        with pytest.raises((symbol.Untraceable, TypeError)):
            function(trace.input)
    for module, said in (
        (layers.Conv2d(2, 2, 3, padding=1, padding_mode="reflect"), "pads by 'reflect'"),
        (layers.Conv2d(2, 2, 3, padding=2, dilation=2), "dilated"),
        (layers.Conv2d(2, 2, 9, padding=4), "a kernel is 9x9"),
        (layers.BatchNorm2d(2, affine=False), "no parameters"),
        (layers.BatchNorm2d(2, track_running_stats=False), "no parameters or no statistics"),
    ):
        module.train()
        with pytest.raises(symbol.Untraceable, match=said):
            module(trace.input)
    shared = layers.Conv2d(2, 2, 1)
    with pytest.raises(symbol.Untraceable, match="twice"):
        shared(shared(trace.input))


@pytest.mark.parametrize("method", ["__iadd__", "__isub__", "__imul__"])
def test_a_map_that_changes_in_place_is_refused(method):
    """Whoever holds a tensor sees it change, which a symbol does not."""
    image = symbol.Trace((1, 2, 3, 4)).input
    with pytest.raises(symbol.Untraceable, match="in place"):
        getattr(image, method)(layers.mean(image))


def test_methods_of_tensors_are_not_those_of_symbols():
    """x.mean() is the mean over all images."""
    ours = {name for name in vars(symbol.Symbol) if not name.startswith("_")}
    assert ours.intersection(dir(mge.Tensor)) == {"shape"}
    with pytest.raises(symbol.Untraceable, match="asks for mean"):
        symbol.Trace((1, 2, 3, 4)).input.mean()


def refused(module, match):
    module.train()
    with pytest.raises(symbol.Untraceable, match=match):
        symbol.trace(module, (1, 4, 5, 5))


@pytest.mark.parametrize("name, shape", [("weight", (6, 4, 3, 3)), ("bias", (1, 6, 1, 1))])
def test_a_convolution_with_pruned_channels_is_refused(name, shape):
    """A program would read beyond the end of its weight."""
    conv = layers.Conv2d(4, 8, 3, padding=1)
    setattr(conv, name, mge.Parameter(np.zeros(shape, np.float32)))
    refused(conv, "a parameter is .* was expected")


@pytest.mark.parametrize("name", ["weight", "bias", "running_mean", "running_var"])
def test_a_batch_norm_with_other_tensors_is_refused(name):
    norm = layers.BatchNorm2d(4)
    setattr(norm, name, mge.Tensor(np.zeros((1, 3, 1, 1), np.float32)))
    refused(norm, "a parameter is .* was expected")
    setattr(norm, name, mge.Tensor(np.zeros((1, 4, 1, 1), np.float16)))
    refused(norm, "float32")


@pytest.mark.parametrize("name", ["eps", "momentum"])
def test_a_batch_norm_without_its_numbers_is_refused(name):
    norm = layers.BatchNorm2d(4)
    setattr(norm, name, None)
    refused(norm, "is no number")


@pytest.mark.parametrize("name", ["affine", "track_running_stats"])
def test_a_batch_norm_without_its_tensors_is_refused(name):
    image = symbol.Trace((1, 4, 5, 5)).input
    with pytest.raises(symbol.Untraceable, match="no parameters or no statistics"):
        image.batch_norm(layers.BatchNorm2d(4, **{name: False}))


def test_a_weight_in_another_layout_is_refused():
    conv = layers.Conv2d(4, 8, 3, padding=1)
    conv.weight = mge.Tensor(conv.weight.numpy(), format="nhwc")
    refused(conv, "layout of a weight is nhwc")


def test_a_convolution_without_a_map_is_refused():
    refused(layers.Conv2d(4, 4, 7), r"map is \(1, 4, -1, -1\)")
    refused(layers.Conv2d(4, 4, 6), r"map is \(1, 4, 0, 0\)")
    refused(layers.Conv2d(4, 4, 3, conv_mode="convolution"), "a convolution is a convolution")


def test_images_in_another_layout_are_left_to_the_other_path(model):
    images = np.zeros((2, 3, 32, 32), np.float32)
    assert model.is_compiled(mge.Tensor(images))
    assert not model.is_compiled(mge.Tensor(images, format="nhwc"))


def test_memory_is_used_again_only_after_it_is_dropped_and_megengine_has_waited():
    pool = memory.Pool([(3,), (2, 2)])
    block = pool.take()
    first, second = block.tensors()
    memory.settle()
    assert pool.take() is not block  # both tensors are held
    del first
    memory.settle()
    assert pool.take() is not block  # one is
    total = second + 1
    del second
    assert pool.take() is not block  # MegEngine may not have computed the sum
    for _ in range(100):  # MegEngine drops a tensor some milliseconds later
        memory.settle()
        if block in pool.free:
            break
        time.sleep(0.01)
    else:
        pytest.fail("the block is not used again")
    assert total.shape == (2, 2)


def test_a_block_whose_tensors_are_not_made_is_forgotten():
    block = weakref.ref(memory.Pool([(3,)]).take())
    assert block() is None


def test_a_program_that_fails_keeps_no_memory(model, monkeypatch, rng):
    x = mge.Tensor(rng.standard_normal((2, 3, 32, 32)).astype(np.float32))
    before = list(memory._lent)
    monkeypatch.setattr(Program, "_run", lambda self, records: 1 / 0)
    with cpu.using("fast"), pytest.raises(ZeroDivisionError):
        model(x)
    assert all(block in before for block in memory._lent)


def test_few_idle_programs_are_kept(model, rng):
    """Several forward passes before their backward passes need one each."""
    x = mge.Tensor(rng.standard_normal((2, 3, 32, 32)).astype(np.float32))
    with cpu.using("fast"), GradManager().attach(model.parameters()) as grad_manager:
        grad_manager.backward(sum(model(x) for _ in range(4)).sum())
    (programs,) = cache._recent[model].values()
    assert len(programs._idle) == cache._IDLE


def test_what_a_forgotten_program_has_returned_stays(rng):
    """Running statistics are in its memory, and whatever a caller keeps."""
    mge.random.seed(0)
    model = models.create("RepGhost050", 10)
    model.train()
    x = mge.Tensor(rng.standard_normal((2, 3, 32, 32)).astype(np.float32))
    with cpu.using("fast"):
        logits = model(x)
        kept = [logits, *model.buffers()]
        before = [tensor.numpy() for tensor in kept]
        cache._recent.clear()
        gc.collect()
        memory.settle()
        blocks = [np.full(1 << size, np.nan, np.float32) for size in range(4, 22)]
        for tensor, value in zip(kept, before, strict=True):
            np.testing.assert_array_equal((tensor + 0).numpy(), value)
    assert blocks
    assert memory._lent


def test_a_size_that_is_no_longer_used_is_forgotten(rng, monkeypatch):
    monkeypatch.setattr(cache, "_FORGET", 3)
    model = models.create("RepGhost050", 10)
    model.train()
    small, large = (
        mge.Tensor(rng.standard_normal((2, 3, size, size)).astype(np.float32)) for size in (32, 40)
    )
    with cpu.using("fast"):
        for x in (small, large, small, large, large, large):
            model(x)
        assert len(cache._recent[model]) == 2
        model(large)
    (programs,) = cache._recent[model].values()
    assert programs.results.shapes[0][2:] == (2, 2)  # the last map of 40 px


def test_another_thread_may_compute_while_a_network_is_traced():
    """Its modules may have hooks; they are called as they are."""

    class Same(M.Module):
        def forward(self, x):
            return x

    hooked, calls = Same(), []
    hooked.register_forward_hook(lambda *_: calls.append(1))
    layer = layers.ConvBN(3, 8, 3)
    layer.train()

    def forward(x):
        thread = threading.Thread(target=hooked, args=(None,))
        thread.start()
        thread.join()
        return layer(x)

    before = M.Module.__call__
    symbol.trace(forward, (2, 3, 32, 32))
    assert calls == [1] and M.Module.__call__ is before
    with pytest.raises(symbol.Untraceable, match="a module has hooks"):
        symbol.trace(hooked, (2, 3, 32, 32))


def test_programs_are_forgotten(rng):
    model = models.create("RepGhost050", 10)
    model.train()
    with cpu.using("fast"):
        for size in (32, 40, 48):
            model(mge.Tensor(rng.standard_normal((2, 3, size, size)).astype(np.float32)))
    assert len(cache._recent[model]) == cache._TRACES
    programs = [weakref.ref(compiled) for compiled in cache._recent[model].values()]
    del model
    gc.collect()
    assert not any(program() for program in programs)
