import models

import megengine as mge
import numpy as np
import pytest

from training import gradients
from training.parameters import kinds


def with_gradients(model, rng, scale=1.0):
    """A float64 copy of the gradients that the parameters get."""
    for parameter in model.parameters():
        gradient = rng.standard_normal(parameter.shape) * scale * rng.lognormal()
        parameter.grad = mge.Tensor(gradient.astype(np.float32))
    return {n: p.grad.numpy().astype(np.float64) for n, p in model.named_parameters()}


def test_one_common_norm_is_clipped_and_directions_are_kept(tiny, rng):
    model = tiny("groups")
    before = with_gradients(model, rng)
    norm = float(np.sqrt(sum((g**2).sum() for g in before.values())))
    gradients.clip_by_norm(model.parameters(), norm / 4)
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.grad.numpy(), before[name] / 4, rtol=1e-5, atol=1e-9)


def test_a_small_norm_and_a_missing_gradient_are_left_alone(tiny, rng):
    model = tiny()
    before = with_gradients(model, rng)
    norm = float(np.sqrt(sum((g**2).sum() for g in before.values())))
    model.linear.weight.grad = None
    gradients.clip_by_norm(model.parameters(), 1.01 * norm)
    assert model.linear.weight.grad is None
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            assert np.array_equal(parameter.grad.numpy(), before[name].astype(np.float32))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_a_gradient_that_is_not_finite_stays_visible(tiny, rng, bad):
    for clip in (
        lambda m: gradients.clip_by_norm(m.parameters(), 1.0),
        lambda m: gradients.clip_adaptively([(m.linear.weight, "linear")], 0.01),
    ):
        model = tiny()
        with_gradients(model, rng)
        gradient = model.linear.weight.grad.numpy().copy()
        gradient[0, 0] = bad
        model.linear.weight.grad = mge.Tensor(gradient)
        clip(model)
        assert not np.isfinite(model.linear.weight.grad.numpy()).all()


def expected_adaptive(weight, gradient, kind, factor):
    """Unit by unit, in float64."""
    if kind in ("norm", "identity norm", "bias"):
        units = [np.s_[:]]
    elif weight.ndim == 5:  # grouped: [G, O/G, I/G, k, k]
        units = [np.s_[g, o] for g in range(weight.shape[0]) for o in range(weight.shape[1])]
    else:
        units = [np.s_[o] for o in range(weight.shape[0])]
    result = gradient.copy()
    for unit in units:
        limit = factor * max(np.linalg.norm(weight[unit].ravel()), 1e-3)
        norm = np.linalg.norm(gradient[unit].ravel())
        if norm > limit:
            result[unit] = gradient[unit] * limit / norm
    return result


@pytest.mark.parametrize("kind", ["groups", "repvit"])
def test_adaptive_clipping_is_its_definition(tiny, rng, kind):
    model = models.create("RepViTM0_6", 10) if kind == "repvit" else tiny(kind)
    # a third of the gradients above the limit, and some weights all zero
    before = with_gradients(model, rng, scale=0.01)
    kind_of = kinds(model)
    gradients.clip_adaptively([(p, kind_of[n]) for n, p in model.named_parameters()], 0.02)
    clipped = 0
    for name, parameter in model.named_parameters():
        weight = parameter.numpy().astype(np.float64)
        expected = expected_adaptive(weight, before[name], kind_of[name], 0.02)
        clipped += not np.array_equal(expected, before[name])
        np.testing.assert_allclose(parameter.grad.numpy(), expected, rtol=1e-4, atol=1e-9)
    assert 0 < clipped <= len(before)
    assert {"norm", "bias", "convolution" if kind == "repvit" else "branch"} <= set(
        kind_of.values()
    )
