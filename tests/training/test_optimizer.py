"""Which parameters decay, what the losses are, and SGD against its definition."""

import megengine as mge
import megengine.functional as F
import numpy as np
import pytest
from megengine.autodiff import GradManager

from training import losses, optimizer


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


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_its_definition(nesterov):
    rng = np.random.default_rng(0)
    module = mge.module.Linear(3, 2)
    w = module.weight.numpy().astype(np.float64)
    sgd = optimizer.sgd(module, 0.1, 0.9, nesterov, weight_decay=0.01)
    velocity = np.zeros_like(w)
    for _ in range(4):
        gradient = rng.standard_normal(w.shape).astype(np.float32)
        module.weight.grad = mge.Tensor(gradient)
        sgd.step().clear_grad()
        decayed = gradient + 0.01 * w
        velocity = 0.9 * velocity + decayed
        w = w - 0.1 * (decayed + 0.9 * velocity if nesterov else velocity)
    np.testing.assert_allclose(module.weight.numpy(), w, rtol=1e-5)
