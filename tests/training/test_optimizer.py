"""Which parameters decay, what the losses are, and the optimizers against their definitions."""

import copy

import models
from models import cpu
from models.cpu import fast

import megengine as mge
import megengine.functional as F
import numpy as np
import pytest
from megengine.autodiff import GradManager

from training import losses, muon, optimizer
from training.adamw import AdamW
from training.parameters import depths


def test_decay_spares_biases_and_batch_norms_but_not_identity_scales(tiny):
    model = tiny("se")
    names = {id(p): name for name, p in model.named_parameters()}
    for custom in (False, True):
        decayed, spared = (
            {names[id(p)] for p in group["params"]}
            for group in optimizer.parameter_groups(model, 1e-4, custom)
        )
        assert not decayed & spared and decayed | spared == set(names.values())
        assert "stage1.0.identity.weight" not in names.values()  # stride 2: no identity
        assert {"linear.weight", "stage2.1.identity.weight", "stage0.se.up.weight"} <= decayed
        assert {"linear.bias", "stage2.1.identity.bias", "stage0.dense.bn.weight"} <= spared
        branches = {"stage0.dense.conv.weight", "stage0.pointwise.conv.weight"}
        assert branches <= (spared if custom else decayed)


def test_decay_rules_differ_in_norms_and_biases(tiny):
    model = tiny("se")
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {
        rule: {names[id(p)] for p in optimizer.parameter_groups(model, 1, rule=rule)[0]["params"]}
        for rule in optimizer.DECAY_RULES
    }
    assert decayed["all"] == set(names.values())
    assert decayed["timm"] < decayed["repvgg"] < decayed["all"]
    only_repvgg = decayed["repvgg"] - decayed["timm"]
    assert only_repvgg and all(name.endswith("identity.weight") for name in only_repvgg)
    kernels = ("conv.weight", "linear.weight", "se.down.weight", "se.up.weight")
    assert decayed["timm"] == {name for name in names.values() if name.endswith(kernels)}


@pytest.mark.parametrize("kind", ["dense", "groups"])
def test_custom_l2_is_its_definition_and_has_gradients(tiny, kind):
    model = tiny(kind)
    rng = np.random.default_rng(0)
    expected, blocks = 0.0, [m for m in model.modules() if hasattr(m, "custom_l2")]
    for block in blocks:
        gains = []
        for branch in (block.dense, block.pointwise):
            bn = branch.bn
            bn.weight[...] = rng.uniform(0.5, 1.5, bn.weight.shape).astype(np.float32)
            bn.running_var[...] = rng.uniform(0.5, 1.5, bn.weight.shape).astype(np.float32)
            gain = bn.weight.numpy() / np.sqrt(bn.running_var.numpy() + bn.eps)
            gains.append(gain.reshape(-1, 1))
        kernel = block.dense.conv.weight.numpy().reshape(len(gains[0]), -1, 3, 3)
        point = block.pointwise.conv.weight.numpy().reshape(len(gains[0]), -1)
        centre = kernel[:, :, 1, 1]
        equal = centre * gains[0] + point * gains[1]
        expected += (kernel**2).sum() - (centre**2).sum()
        expected += (equal**2 / (gains[0] ** 2 + gains[1] ** 2)).sum()
    manager = GradManager().attach(model.parameters())
    with manager:
        term = losses.custom_l2(model)
        manager.backward(term)
    assert float(term.numpy()) == pytest.approx(expected, rel=1e-4)
    block = blocks[-1]
    assert block.pointwise.conv.weight.grad is not None
    gradient = block.pointwise.bn.weight.grad  # the gains are detached
    assert gradient is None or not gradient.numpy().any()


def test_auxiliary_losses_count_a_tenth():
    rng = np.random.default_rng(0)
    labels = mge.Tensor(np.array([1, 0, 2], np.int32))
    logits = {
        name: mge.Tensor(rng.standard_normal((3, 4)).astype(np.float32))
        for name in ("main", "stage1_aux", "stage2_aux")
    }
    parts = {
        name: float(F.nn.cross_entropy(value, labels).numpy()) for name, value in logits.items()
    }
    loss, main = losses.classification(logits, labels, auxiliary_weight=0.1)
    assert main is logits["main"]
    expected = parts["main"] + 0.1 * (parts["stage1_aux"] + parts["stage2_aux"])
    assert float(loss.numpy()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("path", cpu.PATHS)
@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_its_definition(momentum, nesterov, path):
    """Also for more values than one chunk of a compiled pass, and for a parameter that is still."""
    rng = np.random.default_rng(0)
    module = mge.module.Linear(301, 203)
    w, bias = module.weight.numpy().astype(np.float64), module.bias.numpy()
    groups = optimizer.parameter_groups(module, weight_decay=0.01)
    sgd = optimizer.make("sgd", groups, 0.1, momentum, nesterov)
    velocity = np.zeros_like(w)
    before = module.weight.detach()
    for _ in range(4):
        gradient = rng.standard_normal(w.shape).astype(np.float32)
        module.weight.grad = mge.Tensor(gradient)
        with cpu.using(path):
            sgd.step().clear_grad()
        decayed = gradient + 0.01 * w
        velocity = momentum * velocity + decayed
        w = w - 0.1 * (decayed + momentum * velocity if nesterov else velocity)
    np.testing.assert_allclose(module.weight.numpy(), w, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(module.bias.numpy(), bias)
    assert not np.array_equal(before.numpy(), module.weight.numpy())


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_a_compiled_update_keeps_older_values(name):
    """What was read from a parameter before stays as it was, whoever holds it."""
    module = mge.module.Linear(64, 32)
    rule = optimizer.make(name, optimizer.parameter_groups(module, 0.01), 0.1)
    history = []
    for step in range(6):
        history.append((module.weight.detach(), module.weight.numpy().copy()))
        module.weight.grad = mge.Tensor(np.full(module.weight.shape, step + 1, np.float32))
        module.bias.grad = mge.Tensor(np.ones(module.bias.shape, np.float32))
        rule.step().clear_grad()
    for tensor, values in history:
        np.testing.assert_array_equal(tensor.numpy(), values)


def numpy_adamw(w, gradients, lr, decay, b1=0.9, b2=0.999, eps=1e-8):
    """In float64, a learning rate a step."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, (gradient, rate) in enumerate(zip(gradients, lr, strict=True), 1):
        g = gradient.astype(np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w - rate * decay * w
        w = w - rate * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
    return w


def train_adamw(module, gradients, rates, adamw):
    for gradient, rate in zip(gradients, rates, strict=True):
        optimizer.set_learning_rate(adamw, rate)
        module.weight.grad = mge.Tensor(gradient)
        module.bias.grad = mge.Tensor(gradient[:, 0] * np.float32(1e-8))  # of the size of eps
        adamw.step().clear_grad()


@pytest.mark.parametrize("path", ["matmul", "fast"])
def test_adamw_is_its_definition_with_decoupled_decay(rng, path):
    module = mge.module.Linear(3, 2)
    before = [p.numpy().astype(np.float64) for p in (module.weight, module.bias)]
    gradients = list(rng.standard_normal((30, 2, 3)).astype(np.float32))
    gradients[3] *= 0
    rates = np.linspace(0.2, 0.01, 30).tolist()
    groups = optimizer.parameter_groups(module, weight_decay=0.5)
    with cpu.using(path):
        train_adamw(module, gradients, rates, optimizer.make("adamw", groups, 0.1))
    expected = numpy_adamw(before[0], gradients, rates, 0.5)
    np.testing.assert_allclose(module.weight.numpy(), expected, rtol=1e-5, atol=1e-6)
    expected = numpy_adamw(before[1], [g[:, 0] * 1e-8 for g in gradients], rates, 0.0)
    np.testing.assert_allclose(module.bias.numpy(), expected, rtol=1e-5, atol=1e-6)


def spy(function, results):
    """Return a function that also appends what it returns to `results`."""

    def called(*args, **options):
        results.append(function(*args, **options))
        return results[-1]

    return called


def test_the_compiled_adamw_updates_all_of_large_and_small_parameters(rng, monkeypatch):
    """More floats than a chunk, a single one, and a parameter without a gradient, which stays."""
    if not fast.available():
        pytest.skip("the compiled programs are not available here")
    updated = []
    monkeypatch.setattr(fast, "update_by_adamw", spy(fast.update_by_adamw, updated))
    shapes, results = [(150, 300), (1,), (7,), (3, 2)], {}
    values, gradients = ([rng.standard_normal(s).astype(np.float32) for s in shapes] for _ in "ab")
    for path in ("matmul", "fast"):
        parameters = [mge.Parameter(value) for value in values]
        adamw = AdamW([{"params": parameters, "weight_decay": 0.5}], 0.1)
        with cpu.using(path):
            for factor in (1, -2):
                for parameter, gradient in zip(parameters[:3], gradients, strict=False):
                    parameter.grad = mge.Tensor(np.float32(factor) * gradient)
                adamw.step().clear_grad()
        results[path] = [parameter.numpy() for parameter in parameters]
    for a, b in zip(results["fast"], results["matmul"], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    assert np.array_equal(results["fast"][3], values[3])
    assert updated == [True, True]


@pytest.mark.parametrize("name", ["sgd", "adamw", "muon"])
def test_a_parameter_without_axes_is_learnt_too(name):
    parameter = mge.Parameter(np.float32(2))
    rule = optimizer.make(name, [{"params": [parameter], "weight_decay": 0.0}], 0.1)
    parameter.grad = mge.Tensor(np.float32(3))
    rule.step()
    assert parameter.numpy() == pytest.approx(1.7 if name == "sgd" else 1.9)


def test_adamw_agrees_with_megengines_own(rng):
    ours, theirs = mge.module.Linear(4, 5), mge.module.Linear(4, 5)
    theirs.load_state_dict(ours.state_dict())
    gradients = list(rng.standard_normal((10, 5, 4)).astype(np.float32))
    groups = optimizer.parameter_groups(ours, weight_decay=0.1, rule="all")
    stock = mge.optimizer.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.1)
    train_adamw(ours, gradients, [0.01] * 10, optimizer.make("adamw", groups, 0.01))
    train_adamw(theirs, gradients, [0.01] * 10, stock)
    np.testing.assert_allclose(ours.weight.numpy(), theirs.weight.numpy(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "layer", "shape"),
    [
        ("adamw", mge.module.Linear(3, 2), (2, 3)),
        ("muon", mge.module.Conv2d(3, 2, 1), (2, 3, 1, 1)),
    ],
)
def test_an_optimizer_goes_on_from_its_state_with_the_same_bits(rng, name, layer, shape):
    gradients = list(rng.standard_normal((8, *shape)).astype(np.float32))
    start = {key: value.copy() for key, value in layer.state_dict().items()}

    def fresh(weights=None):
        module = copy.deepcopy(layer)
        module.load_state_dict(weights or start)
        groups = optimizer.parameter_groups(module, weight_decay=0.1)
        return module, optimizer.make(name, groups, 0.1)

    module, adamw = fresh()
    train_adamw(module, gradients, [0.1] * 8, adamw)
    first, adamw = fresh()
    train_adamw(first, gradients[:3], [0.1] * 3, adamw)
    second, resumed = fresh(first.state_dict())
    resumed.load_state_dict(adamw.state_dict())
    train_adamw(second, gradients[3:], [0.1] * 5, resumed)
    assert np.array_equal(module.weight.numpy(), second.weight.numpy())


def newton_schulz(matrix):
    """In float64, five steps on the matrix itself."""
    x = matrix / np.linalg.norm(matrix)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (6, 6), (1, 9)])
def test_orthogonal_has_the_singular_vectors_of_its_matrix(rng, shape):
    matrix = rng.standard_normal(shape)
    result = muon.orthogonal(mge.Tensor(matrix, dtype="float32")).numpy()
    expected = newton_schulz(matrix if shape[0] <= shape[1] else matrix.T)
    np.testing.assert_allclose(result if result.shape == expected.shape else result.T, expected,
                               atol=1e-5)  # fmt: skip
    u, values, v = np.linalg.svd(matrix, full_matrices=False)
    assert 0.6 < np.diag(u.T @ result @ v.T).min() <= np.diag(u.T @ result @ v.T).max() < 1.25
    assert values.max() > 1.25 or shape[0] == 1  # the test's matrices are not orthogonal themselves


def test_orthogonal_keeps_zeros_and_does_not_see_the_scale(rng):
    assert not muon.orthogonal(mge.Tensor(np.zeros((3, 4), np.float32))).numpy().any()
    matrix = mge.Tensor(rng.standard_normal((3, 4)), dtype="float32")
    results = [muon.orthogonal(matrix * scale).numpy() for scale in (1, 1e-9, 1e9)]
    np.testing.assert_allclose(results[1], results[0], atol=2e-3)
    np.testing.assert_allclose(results[2], results[0], atol=1e-5)


def test_the_program_for_matrices_is_the_same_function(rng):
    """Matrices of one shape, wide, tall and square, zeros among them; also a second time."""
    if not fast.available():
        pytest.skip("the compiled programs are not available here")
    owner, shapes = mge.module.Identity(), [(8, 30), (30, 8), (8, 30), (1, 9), (40, 40), (3, 3)]
    for _ in range(2):
        matrices = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
        matrices[-1][:] = 0
        results = cpu.orthogonal(owner, [mge.Tensor(m) for m in matrices], muon.STEPS)
        for matrix, result in zip(matrices, results, strict=True):
            expected = muon.orthogonal(mge.Tensor(matrix)).numpy()
            np.testing.assert_allclose(result.numpy(), expected, atol=2e-5)


def test_the_program_in_bfloat16_is_nearly_the_same_function(rng):
    """Singular values between 0.6 and 1.25, but for tiny ones; wide matrices are as in float32."""
    if not cpu.has_bfloat16():
        pytest.skip("the processor has no bfloat16")
    owner, shapes = mge.module.Identity(), [(64, 64), (48, 96), (96, 48), (64, 64), (16, 160)]
    matrices = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    matrices[3][:] = 0
    tensors = [mge.Tensor(matrix) for matrix in matrices]
    exact = cpu.orthogonal(owner, tensors, muon.STEPS)
    with cpu.bfloat16():
        rounded = cpu.orthogonal(owner, tensors, muon.STEPS)
    for matrix, a, b in zip(matrices, exact, rounded, strict=True):
        distance = np.linalg.norm(a.numpy() - b.numpy()) / max(1e-9, np.linalg.norm(a.numpy()))
        if max(matrix.shape) < 100 and matrix.any():
            assert 1e-4 < distance < 0.03
            u, values, v = np.linalg.svd(matrix, full_matrices=False)
            kept = np.diag(u.T @ b.numpy() @ v.T)[values > 0.05 * values[0]]
            assert 0.6 < kept.min() <= kept.max() < 1.25
        else:
            assert distance == 0


def step(name, layer, gradients, decay=0.0, **options):
    """Train the layer by the optimizer `name`: a step for each of the lists of gradients."""
    groups = optimizer.parameter_groups(layer, weight_decay=decay)
    rule = optimizer.make(name, groups, 0.1, **options)
    for step, gradient in enumerate(gradients):
        optimizer.set_learning_rate(rule, 0.1 / (step + 1))
        for parameter, values in zip(layer.parameters(), gradient, strict=True):
            parameter.grad = mge.Tensor(values)
        rule.step().clear_grad()
    return [parameter.numpy() for parameter in layer.parameters()]


def test_muon_is_its_definition_for_kernels_and_adamw_for_the_rest(rng):
    layer = mge.module.Sequential(
        mge.module.Conv2d(4, 6, 3),
        mge.module.BatchNorm2d(6),
        mge.module.Conv2d(6, 6, 3, groups=2),
        mge.module.Linear(6, 2),
    )
    gradients = [
        [rng.standard_normal(p.shape).astype(np.float32) for p in layer.parameters()]
        for _ in range(4)
    ]
    kernel = next(i for i, p in enumerate(layer.parameters()) if p.shape == (6, 4, 3, 3))
    expected = list(layer.parameters())[kernel].numpy().astype(np.float64)
    velocity = np.zeros((6, 36))
    for number, gradient in enumerate(gradients):
        g, rate = gradient[kernel].reshape(6, 36).astype(np.float64), 0.1 / (number + 1)
        velocity = 0.8 * velocity + g
        change = newton_schulz(g + 0.8 * velocity).reshape(expected.shape)
        expected = (1 - rate * 0.5) * expected - 0.2 * rate * 6 * change  # the root of 36
    adamw = step("adamw", copy.deepcopy(layer), gradients, 0.5)
    muon = step("muon", copy.deepcopy(layer), gradients, 0.5, momentum=0.8)
    np.testing.assert_allclose(muon[kernel], expected, atol=1e-5)
    for i in range(len(gradients[0])):
        assert np.array_equal(muon[i], adamw[i]) == (i != kernel)


def test_muon_leaves_matrices_that_would_cost_too_much_to_adamw(rng, monkeypatch):
    layer = mge.module.Conv2d(4, 3, 1, bias=False)
    gradients = [[rng.standard_normal((3, 4, 1, 1)).astype(np.float32)]]
    small = step("muon", copy.deepcopy(layer), gradients)
    monkeypatch.setattr(muon.Muon, "LARGEST_SIDE", 2)
    large = step("muon", copy.deepcopy(layer), gradients)
    adamw = step("adamw", copy.deepcopy(layer), gradients)
    assert np.array_equal(large[0], adamw[0]) and not np.array_equal(small[0], adamw[0])


def test_layer_decay_lowers_the_rate_from_the_classifier_to_the_stem(tiny):
    model = tiny("se")  # 1, 2, 4 and 1 blocks
    names = {id(p): name for name, p in model.named_parameters()}
    groups = optimizer.parameter_groups(model, 0.1, layer_decay=0.5)
    adamw = optimizer.make("adamw", groups, 1.0)
    optimizer.set_learning_rate(adamw, 0.2)
    optimizer.set_weight_decay(adamw, 0.3)
    rates, decays = {}, {}
    for group in adamw.param_groups:
        for parameter in group["params"]:
            rates[names[id(parameter)]] = group["lr"]
            decays[names[id(parameter)]] = group["weight_decay"]
    assert rates.keys() == set(names.values())
    for name, rate in rates.items():
        stage, block = [*name.split("."), "0"][:2]
        depth = {"stage0": 0, "stage1": 1, "stage2": 2, "stage3": 4, "stage4": 8, "linear": 9}[
            stage
        ]
        depth += int(block) if stage in ("stage2", "stage3") else 0
        assert rate == pytest.approx(0.2 * 0.5 ** (9 - depth)), name
    plain = optimizer.parameter_groups(model, 0.3)
    decayed = {names[id(p)] for p in plain[0]["params"]}
    assert {name for name, decay in decays.items() if decay == 0.3} == decayed


def test_every_network_has_depths_from_the_stem_to_the_classifier(tiny):
    others = (models.create(arch, 3) for arch in ("RepViTM0_6", "RepGhost050", "FastViTT8"))
    for model in (tiny("plus", 3), *others):
        depth, end = depths(model), len(model.blocks()) + 1
        assert set(depth.values()) == set(range(end + 1))
        last = {name for name in depth if depth[name] == end}
        assert set(models.head_names(model)) <= last
        assert not any(name.startswith(("stem", "stage0")) for name in last)
