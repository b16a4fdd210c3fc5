"""models/cpu and SGD against float64 NumPy and against stock MegEngine."""

import hashlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from models import cpu, layers
from models.cpu.matmul import convolution, large_kernel

import megengine as mge
import megengine.functional as F
import megengine.optimizer as optim
import numpy as np
import pytest
from megengine.autodiff import GradManager

from tests.support import ROOT
from training.optimizer import SGD

# n, c, o, (h, w), (kh, kw), stride, padding, groups
CASES = [
    # small maps: columns of the whole batch
    (4, 6, 8, (4, 4), (3, 3), (1, 1), (1, 1), 1),
    (5, 6, 8, (2, 2), (3, 3), (1, 1), (1, 1), 1),
    (4, 6, 8, (1, 1), (3, 3), (1, 1), (1, 1), 1),  # only the centre tap sees the map
    (4, 6, 8, (2, 2), (3, 3), (2, 2), (1, 1), 1),  # four taps do
    (4, 6, 8, (1, 2), (3, 5), (1, 1), (1, 2), 1),
    (4, 6, 8, (3, 2), (7, 7), (1, 1), (3, 3), 2),
    (1, 6, 8, (8, 8), (3, 3), (1, 1), (1, 1), 1),
    (70, 3, 5, (4, 4), (3, 3), (1, 1), (1, 1), 1),  # a batch above the identity limit
    (70, 80, 72, (1, 1), (1, 1), (1, 1), (0, 0), 1),
    (3, 6, 8, (5, 7), (3, 3), (2, 2), (1, 1), 2),
    (3, 6, 8, (6, 9), (5, 3), (3, 2), (2, 0), 2),
    (3, 6, 8, (7, 7), (2, 2), (2, 2), (0, 0), 1),  # the last row and column are read by nobody
    (3, 6, 8, (8, 7), (1, 1), (2, 2), (0, 0), 1),
    (3, 6, 8, (9, 9), (1, 1), (3, 3), (0, 0), 1),  # phases without any tap
    (3, 6, 8, (5, 5), (1, 1), (1, 1), (2, 1), 1),  # padding beyond the kernel
    (3, 6, 8, (5, 4), (3, 3), (1, 1), (2, 0), 1),
    (3, 6, 8, (1, 3), (3, 3), (1, 1), (2, 1), 2),
    (3, 16, 8, (4, 5), (3, 3), (1, 1), (1, 1), 2),
    (3, 16, 32, (6, 5), (3, 3), (2, 2), (1, 1), 2),
    (2, 6, 6, (5, 5), (3, 3), (1, 1), (1, 1), 6),
    (2, 6, 12, (5, 6), (3, 3), (2, 2), (1, 1), 6),
    (2, 6, 6, (6, 6), (5, 5), (1, 1), (2, 2), 6),
    (2, 4, 4, (1, 1), (1, 1), (2, 2), (1, 1), 1),  # no tap sees the map: all zero
    # large maps: stock convolution, columns for the weight gradient
    (3, 6, 8, (15, 17), (3, 3), (1, 1), (1, 1), 1),
    (3, 6, 8, (16, 16), (3, 3), (2, 1), (1, 1), 1),
    (3, 6, 8, (15, 18), (3, 3), (1, 2), (1, 1), 1),
    (3, 6, 8, (23, 26), (3, 3), (2, 2), (1, 1), 1),
    (3, 6, 8, (26, 23), (3, 3), (2, 2), (1, 1), 2),
    (3, 6, 8, (33, 30), (3, 3), (3, 3), (1, 1), 1),
    (1, 6, 8, (13, 12), (5, 5), (1, 1), (2, 2), 1),
    (2, 3, 8, (21, 20), (7, 7), (2, 2), (3, 3), 1),
    (2, 6, 8, (12, 11), (2, 2), (1, 1), (0, 0), 1),
    (2, 6, 8, (12, 11), (1, 1), (1, 1), (0, 0), 1),
    (2, 6, 8, (22, 23), (1, 1), (2, 2), (0, 0), 1),
    (2, 6, 8, (12, 11), (3, 1), (1, 1), (1, 3), 1),
    (2, 6, 8, (20, 24), (1, 5), (1, 2), (0, 1), 2),
    (2, 6, 6, (15, 14), (3, 3), (1, 1), (1, 1), 6),
    (2, 6, 6, (21, 22), (3, 3), (2, 2), (1, 1), 6),
    (2, 6, 12, (14, 15), (7, 7), (1, 1), (3, 3), 6),
    # depthwise
    *(
        (3, 6, 6, size, (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), 6)
        for size in ((1, 1), (2, 2), (3, 2), (4, 4), (5, 3), (7, 8), (8, 8), (9, 12), (17, 33))
        for kernel in (1, 3, 5, 7)
        for stride in (1, 2)
    ),
    (2, 6, 6, (32, 15), (3, 5), (2, 3), (0, 1), 6),
    (2, 6, 6, (14, 15), (5, 3), (3, 1), (4, 2), 6),
    (2, 6, 6, (4, 3), (3, 2), (1, 2), (2, 0), 6),
    (2, 6, 6, (14, 15), (3, 3), (1, 1), (3, 3), 6),  # padding beyond the kernel
    (2, 6, 6, (13, 14), (2, 3), (3, 4), (0, 0), 6),  # rows and columns that nobody reads
    (2, 6, 12, (4, 4), (3, 3), (1, 1), (1, 1), 6),
    (2, 6, 12, (8, 8), (7, 7), (2, 2), (3, 3), 6),
    # large kernels, in maps that they cover and in larger ones
    (1, 3, 3, (7, 7), (13, 13), (1, 1), (6, 6), 3),
    (1, 3, 3, (14, 13), (27, 27), (1, 1), (13, 13), 3),
    (1, 2, 2, (33, 18), (31, 31), (1, 1), (15, 15), 2),
    (1, 2, 2, (2, 1), (31, 31), (1, 1), (15, 15), 2),
    (3, 4, 4, (12, 20), (9, 11), (1, 1), (4, 0), 4),
    (2, 4, 4, (11, 12), (11, 9), (1, 1), (0, 8), 4),
    (2, 4, 4, (14, 13), (9, 9), (2, 2), (4, 4), 4),
    (2, 4, 4, (14, 13), (9, 5), (1, 1), (4, 2), 4),
    (2, 3, 6, (10, 9), (9, 9), (1, 1), (4, 4), 3),
    (2, 6, 18, (15, 14), (7, 7), (2, 2), (3, 3), 6),
    *((2, 1, 1, (4, 5), (k, k), (1, 1), (k // 2, k // 2), 1) for k in (1, 3)),  # one channel
]


def conv_float64(x, w, stride, padding, groups, dy_of):
    """y, dx, dw in float64, tap by tap."""
    (n, c, h, wid), (kh, kw) = x.shape, w.shape[-2:]
    (sh, sw), (ph, pw) = stride, padding
    xp = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (ph, ph), (pw, pw)))
    xp = xp.reshape(n, groups, c // groups, *xp.shape[2:])
    w = w.astype(np.float64).reshape(groups, -1, c // groups, kh, kw)
    oh, ow = (h + 2 * ph - kh) // sh + 1, (wid + 2 * pw - kw) // sw + 1
    windows = {
        (i, j): (..., slice(i, i + sh * (oh - 1) + 1, sh), slice(j, j + sw * (ow - 1) + 1, sw))
        for i in range(kh)
        for j in range(kw)
    }
    y = sum(np.einsum("ngchw,goc->ngohw", xp[s], w[..., i, j]) for (i, j), s in windows.items())
    dy = dy_of(y.reshape(n, -1, oh, ow).shape)
    d = dy.astype(np.float64).reshape(y.shape)
    dxp, dw = np.zeros_like(xp), np.zeros_like(w)
    for (i, j), s in windows.items():
        dw[..., i, j] = np.einsum("ngohw,ngchw->goc", d, xp[s])
        dxp[s] += np.einsum("ngohw,goc->ngchw", d, w[..., i, j])
    dx = dxp[..., ph : ph + h, pw : pw + wid].reshape(x.shape)
    return y.reshape(n, -1, oh, ow), dx, dw, dy


def differentiate(f, arrays, dy):
    """Outputs and gradients of f at the arrays, as numpy."""
    tensors = [mge.Tensor(a) for a in arrays]
    gm = GradManager().attach(tensors)
    with gm:
        y = f(*tensors)
        gm.backward(y, mge.Tensor(dy))
    return [y.numpy()] + [t.grad.numpy() if t.grad is not None else None for t in tensors]


def close(got, want, tolerance):
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= tolerance * max(np.abs(want).max(), 1e-30)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_conv2d(case):
    n, c, o, size, kernel, stride, padding, groups = case
    rs = np.random.RandomState(7)
    x = rs.randn(n, c, *size).astype(np.float32)
    w_shape = (o, c, *kernel) if groups == 1 else (groups, o // groups, c // groups, *kernel)
    w = rs.randn(*w_shape).astype(np.float32)
    *want, dy = conv_float64(
        x, w, stride, padding, groups, lambda s: rs.randn(*s).astype(np.float32)
    )
    want[2] = want[2].reshape(w_shape)
    ours = differentiate(lambda a, b: cpu.conv2d(a, b, stride, padding, groups), (x, w), dy)
    stock = differentiate(lambda a, b: F.conv2d(a, b, None, stride, padding, 1, groups), (x, w), dy)
    for reference in (want, stock):
        for got, expected, tolerance in zip(ours, reference, (1e-5, 1e-4, 1e-4), strict=True):
            close(got, expected, tolerance)


@pytest.mark.parametrize("settings", [{"dilation": 2}, {"padding_mode": "reflect"}], ids=str)
@pytest.mark.parametrize("side", [5, 20])
@pytest.mark.parametrize("training", [False, True])
def test_a_layer_with_other_settings_is_megengines(settings, side, training, rng):
    module = layers.Conv2d(4, 4, 3, padding=2, **settings)
    module.train(training)
    x = mge.Tensor(rng.standard_normal((2, 4, side, side)).astype(np.float32))
    with cpu.using("stock"):
        expected = module(x).numpy()
    np.testing.assert_array_equal(module(x).numpy(), expected)


@pytest.mark.parametrize("groups", [1, 8])
def test_no_images_give_no_maps(groups):
    """MegEngine's own operators of the gradients divide by their number and end the process."""
    x = mge.Tensor(np.zeros((0, 8, 4, 4), np.float32))
    weight = np.zeros((8, 8, 3, 3) if groups == 1 else (8, 1, 1, 3, 3), np.float32)
    assert cpu.conv2d(x, mge.Tensor(weight), (2, 2), (1, 1), groups).shape == (0, 8, 2, 2)


def test_weight_gradient_of_a_large_map_in_several_pieces(monkeypatch):
    rs = np.random.RandomState(3)
    x, w, dy = (
        rs.randn(*s).astype(np.float32) for s in ((5, 4, 12, 13), (6, 4, 3, 3), (5, 6, 12, 13))
    )
    whole = differentiate(lambda a, b: cpu.conv2d(a, b, (1, 1), (1, 1)), (x, w), dy)
    monkeypatch.setattr(convolution, "_COLUMN_FLOATS", 2 * 4 * 9 * 12 * 13)
    pieces = differentiate(lambda a, b: cpu.conv2d(a, b, (1, 1), (1, 1)), (x, w), dy)
    for a, b in zip(pieces, whole, strict=True):
        close(a, b, 1e-5)


def test_large_kernels_row_by_row(monkeypatch):
    rs = np.random.RandomState(3)
    x, w, dy = (
        rs.randn(*s).astype(np.float32) for s in ((2, 3, 12, 13), (3, 1, 1, 11, 11), (2, 3, 12, 13))
    )
    whole = differentiate(lambda a, b: cpu.conv2d(a, b, (1, 1), (5, 5), 3), (x, w), dy)
    monkeypatch.setattr(large_kernel, "_FLOATS", 1)
    rows = differentiate(lambda a, b: cpu.conv2d(a, b, (1, 1), (5, 5), 3), (x, w), dy)
    for a, b in zip(rows, whole, strict=True):
        close(a, b, 1e-5)


@pytest.mark.parametrize(
    "shape", [(4, 6, 5, 7), (16, 3, 1, 1), (1, 5, 9, 4), (2, 48, 20, 20)], ids=str
)
def test_batch_norm(shape):
    rs = np.random.RandomState(5)
    c, momentum, eps = shape[1], 0.8, 1e-3
    x, dy = (rs.randn(*shape).astype(np.float32) * 2 + 3 for _ in range(2))
    g, b, m, v = ((rs.rand(1, c, 1, 1) + 0.5).astype(np.float32) for _ in range(4))
    results = []
    for f in (
        cpu.batch_norm,
        lambda x, g, b, m, v, momentum, eps: F.nn.batch_norm(
            x, m, v, g, b, training=True, momentum=momentum, eps=eps, inplace=True
        ),
    ):
        running = mge.Tensor(m), mge.Tensor(v)
        out = differentiate(
            lambda x, g, b, f=f, r=running: f(x, g, b, *r, momentum, eps), (x, g, b), dy
        )
        results.append(out + [t.numpy() for t in running])
    x64, d64 = x.astype(np.float64), dy.astype(np.float64)
    axes, count = (0, 2, 3), x.size // c
    mean, var = x64.mean(axes, keepdims=True), x64.var(axes, keepdims=True)
    inv = (var + eps) ** -0.5
    norm = (x64 - mean) * inv
    db, dg = d64.sum(axes, keepdims=True), (d64 * norm).sum(axes, keepdims=True)
    want = [norm * g + b, g * inv * (d64 - db / count - norm * dg / count), dg, db]
    want += [
        momentum * m + (1 - momentum) * mean,
        momentum * v + (1 - momentum) * var * count / (count - 1),
    ]
    for got, stock, expected in zip(results[0], results[1], want, strict=True):
        close(got, expected, 1e-5)
        close(got, stock, 1e-4)


@pytest.mark.parametrize(
    "operator, shape",
    [(cpu.add_bias, (1, 32, 1, 1)), (cpu.scale_channels, (32, 1, 1))],
    ids=["bias", "layer scale"],
)
def test_gradients_of_channels_are_right_while_other_work_goes_on(operator, shape):
    """With x + bias or x * scale in its place some of these come out wrong, in every run."""
    rng = np.random.default_rng(0)
    x, dy = (rng.standard_normal((6, 32, 4, 4), np.float32) for _ in range(2))
    terms = dy * x if operator is cpu.scale_channels else dy
    expected = terms.sum((0, 2, 3), np.float64).reshape(shape)
    x, dy = mge.Tensor(x), mge.Tensor(dy)
    parameter = mge.Parameter(np.zeros(shape, np.float32))
    others = [mge.Tensor(np.full(n, 1e30, np.float32)) for n in (192, 512, 3072)]
    late = mge.Tensor(np.ones(1 << 20, np.float32))
    for _ in range(20):
        grads = []
        for _ in range(50):
            late + 1.0  # so that what follows waits in the queue
            with GradManager().attach([parameter]) as manager:
                manager.backward(operator(x, parameter), dy)
            grads.append(parameter.grad)
            parameter.grad = None
            for other in others:
                other * 2.0, other * 3.0
        for grad in grads:
            close(grad.numpy(), expected, 1e-5)


def test_gradients_of_batch_norms_with_fixed_statistics_are_right(rng):
    """As in fine-tuning a detector's backbone, while other work goes on."""
    norm = layers.BatchNorm2d(32)
    for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        tensor._reset(mge.Tensor(rng.uniform(0.5, 2, tensor.shape), dtype="float32"))
    norm.eval()
    x, dy = (rng.standard_normal((6, 32, 4, 4)).astype(np.float32) for _ in range(2))
    mean, var = (t.numpy().astype(np.float64) for t in (norm.running_mean, norm.running_var))
    normalized = (x - mean) / np.sqrt(var + norm.eps)
    expected = [(dy * terms).sum((0, 2, 3), np.float64) for terms in (normalized, 1.0)]
    x, dy = mge.Tensor(x), mge.Tensor(dy)
    without = norm(x).numpy()
    others = [mge.Tensor(np.full(n, 1e30, np.float32)) for n in (192, 512, 3072)]
    for _ in range(20):
        with GradManager().attach([norm.weight, norm.bias]) as manager:
            y = norm(x)
            manager.backward(y, dy)
        for other in others:
            other * 2.0, other * 3.0
        close(y.numpy(), without, 1e-5)
        for parameter, gradient in zip((norm.weight, norm.bias), expected, strict=True):
            close(parameter.grad.numpy().ravel(), gradient, 1e-5)
            parameter.grad = None


def test_relu():
    x = np.array([[-3, -0.0, 0.0, 1e-30, 0.5, 1, 5.9, 6, 7, 1e30]], np.float32)
    dy = np.arange(1, 11, dtype=np.float32)[None]
    ours, stock = differentiate(cpu.relu, (x,), dy), differentiate(F.relu, (x,), dy)
    assert np.array_equal(ours[0], stock[0]) and np.array_equal(ours[1], stock[1])


@pytest.mark.parametrize(
    "momentum, decay, nesterov",
    [(0, 0, False), (0.9, 0, False), (0.9, 1e-2, False), (0.9, 1e-2, True)],
)
def test_sgd_follows_stock_and_resumes_exactly(momentum, decay, nesterov):
    rs = np.random.RandomState(1)
    start, grads = rs.randn(8, 5).astype(np.float32), rs.randn(6, 8, 5).astype(np.float32)
    kwargs = {"lr": 0.1, "momentum": momentum, "weight_decay": decay, "nesterov": nesterov}

    def run(kind, value, steps, state=None):
        param = mge.Parameter(value)
        opt = kind([param], **kwargs)
        if state:
            opt.load_state_dict(state)
        for grad in steps:
            param.grad = mge.Tensor(grad)
            opt.step()
        return param.numpy(), opt.state_dict()

    ours, _ = run(SGD, start, grads)
    close(ours, run(optim.SGD, start, grads)[0], 1e-6)
    if not momentum:  # nothing to save
        return
    half, state = run(SGD, start, grads[:3])
    assert np.array_equal(run(SGD, half, grads[3:], state)[0], ours)


def block(x, w3, w1, *norms):
    y = [cpu.conv2d(x, w3, (1, 1), (1, 1)), cpu.conv2d(x, w1), x]
    stats = [mge.Tensor(np.ones_like(norms[0].numpy())) for _ in range(2)]
    return cpu.relu(
        sum(
            cpu.batch_norm(v, g, b, *stats)
            for v, g, b in zip(y, norms[::2], norms[1::2], strict=True)
        )
    )


def stock_block(x, w3, w1, *norms):
    y = [F.conv2d(x, w3, None, 1, 1), F.conv2d(x, w1), x]
    return F.relu(
        sum(
            F.nn.batch_norm(v, weight=g, bias=b, training=True)
            for v, g, b in zip(y, norms[::2], norms[1::2], strict=True)
        )
    )


@pytest.mark.parametrize("size", [2, 4, 10])
def test_gradients_through_a_block(size):
    rs = np.random.RandomState(2)
    shapes = [(6, 8, size, size), (8, 8, 3, 3), (8, 8, 1, 1)] + [(1, 8, 1, 1)] * 6
    arrays = [rs.randn(*s).astype(np.float32) for s in shapes]
    dy = rs.randn(*shapes[0]).astype(np.float32)
    for got, want in zip(
        differentiate(block, arrays, dy), differentiate(stock_block, arrays, dy), strict=True
    ):
        close(got, want, 1e-4)


def train_and_hash(steps: int = 3) -> str:
    """Trains nine blocks (maps of 16, 4 and 2) with SGD; the hash of every parameter's bits."""
    rs = np.random.RandomState(4)
    blocks = [  # weight, stride, padding
        ((48, 3, 3, 3), 2, 1),
        ((48, 1, 1, 3, 3), 1, 1),
        ((48, 1, 1, 1, 1), 1, 0),
        ((96, 48, 3, 3), 4, 1),
        ((96, 1, 1, 3, 3), 1, 1),
        ((192, 96, 3, 3), 2, 1),
        ((192, 1, 1, 3, 3), 1, 1),
        ((192, 192, 3, 3), 1, 1),
        ((192, 192, 1, 1), 1, 0),
    ]
    shapes = [shape for shape, _, _ in blocks]
    weights = [mge.Parameter(rs.randn(*s).astype(np.float32) * 0.05) for s in shapes]
    norms = [mge.Parameter(np.full((1, s[0], 1, 1), i, np.float32)) for s in shapes for i in (1, 0)]
    stats = [mge.Tensor(np.ones((1, s[0], 1, 1), np.float32)) for s in shapes for _ in range(2)]
    gm, opt = (
        GradManager().attach(weights + norms),
        SGD(weights + norms, lr=0.1, momentum=0.9, nesterov=True),
    )
    x = mge.Tensor(rs.randn(16, 3, 32, 32).astype(np.float32))
    for _ in range(steps):
        with gm:
            y = x
            for i, (w, (shape, s, p)) in enumerate(zip(weights, blocks, strict=True)):
                y = cpu.conv2d(y, w, (s, s), (p, p), shape[0] if len(shape) == 5 else 1)
                y = cpu.relu(
                    cpu.batch_norm(y, *norms[2 * i : 2 * i + 2], *stats[2 * i : 2 * i + 2])
                )
            gm.backward((y * y).mean())
        opt.step().clear_grad()
    return hashlib.sha256(
        b"".join(p.numpy().tobytes() for p in weights + norms + stats)
    ).hexdigest()


def test_same_bits_in_this_process_and_in_others():
    code = (
        "import models; from tests.models import test_cpu; print('hash', test_cpu.train_and_hash())"
    )
    command = [sys.executable, "-c", code]
    others = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]  # loaded cores
    hashes = {train_and_hash() for _ in range(3)}
    for process in others:
        hashes.add(process.communicate()[0].split("hash ")[1].strip())
        assert process.returncode == 0
    assert len(hashes) == 1


def test_layers_use_them_on_a_cpu_and_only_where_they_are_faster(monkeypatch):
    calls = []
    monkeypatch.setattr(cpu, "conv2d", lambda *arguments: calls.append(1) or cpu_conv2d(*arguments))
    cpu_conv2d = convolution.conv2d
    conv = layers.Conv2d(4, 4, 3, padding=1, bias=True)
    conv.bias[...] = np.ones((1, 4, 1, 1), np.float32)
    for training, size, expected in ((True, 20, 1), (False, 20, 0), (True, 8, 1), (False, 8, 1)):
        calls.clear()
        conv.train(training)
        x = mge.Tensor(np.random.RandomState(0).randn(2, 4, size, size).astype(np.float32))
        ours = conv(x).numpy()
        assert len(calls) == expected
        with cpu.using("stock"):
            np.testing.assert_allclose(ours, conv(x).numpy(), atol=1e-5)


def test_another_thread_keeps_using_them():
    with cpu.using("stock"), ThreadPoolExecutor(1) as pool:
        assert not cpu.is_used() and pool.submit(cpu.is_used).result()
    assert cpu.is_used()


def test_what_is_traced_keeps_the_stock_operators():
    conv = layers.Conv2d(4, 4, 3, padding=1)
    x = mge.Tensor(np.zeros((2, 4, 4, 4), np.float32))
    assert cpu.is_used()
    seen = []

    def forward(x):
        seen.append(cpu.is_used())
        return conv(x)

    mge.jit.trace(forward, symbolic=True)(x)
    assert seen == [False]
    traced = mge.traced_module.trace_module(conv, x)
    assert "conv2d" in str(traced.graph)
