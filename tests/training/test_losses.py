"""Losses against NumPy in float64."""

import megengine as mge
import numpy as np
import pytest

from training import accumulation, losses


def log_softmax(x):
    x = x.astype(np.float64)
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


def value(loss):
    return float(loss.numpy())


@pytest.fixture
def logits(rng):
    return (3 * rng.standard_normal((6, 5))).astype(np.float32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_soft_targets_generalize_labels(logits, rng, smoothing):
    labels = rng.integers(0, 5, 6).astype(np.int32)
    hard = value(losses.cross_entropy(mge.Tensor(logits), mge.Tensor(labels), smoothing))
    one_hot = np.eye(5, dtype=np.float32)[labels]
    soft = value(losses.cross_entropy(mge.Tensor(logits), mge.Tensor(one_hot), smoothing))
    assert soft == pytest.approx(hard, rel=1e-5)
    mixed = (0.3 * one_hot + 0.7 * one_hot[::-1]).astype(np.float32)
    target = (1 - smoothing) * mixed + smoothing / 5
    expected = -(target * log_softmax(logits)).sum(axis=1).mean()
    got = value(losses.cross_entropy(mge.Tensor(logits), mge.Tensor(mixed), smoothing))
    assert got == pytest.approx(expected, rel=1e-5)


def test_hard_distillation_is_cross_entropy_with_the_teachers_choice(logits, rng):
    teacher = rng.standard_normal((6, 5)).astype(np.float32)
    expected = -log_softmax(logits)[np.arange(6), teacher.argmax(axis=1)].mean()
    got = losses.distillation(mge.Tensor(logits), mge.Tensor(teacher), "hard", 3.0)
    assert value(got) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_distillation_is_the_divergence_at_a_temperature(logits, rng, temperature):
    teacher = (2 * rng.standard_normal((6, 5))).astype(np.float32)
    ours, theirs = log_softmax(logits / temperature), log_softmax(teacher / temperature)
    expected = (np.exp(theirs) * (theirs - ours)).sum(axis=1).mean() * temperature**2
    got = losses.distillation(mge.Tensor(logits), mge.Tensor(teacher), "soft", temperature)
    assert value(got) == pytest.approx(expected, rel=1e-5)
    same = losses.distillation(mge.Tensor(teacher), mge.Tensor(teacher), "soft", temperature)
    assert value(same) == pytest.approx(0, abs=1e-6)


def test_the_distillation_head_learns_from_the_teacher_alone(logits):
    one, other = mge.Tensor(logits), mge.Tensor(-logits)
    taught, by = losses.split_heads({"main": one, "distilled": other})
    assert list(taught) == ["main"] and by is other
    taught, by = losses.split_heads({"main": one, "stage1_aux": other})
    assert list(taught) == ["main", "stage1_aux"] and by is one
    assert losses.split_heads(one) == (one, one)


@pytest.mark.parametrize("size, count", [(12, 3), (11, 4), (2, 5), (6, 1)])
def test_parts_of_a_batch_add_up_to_it(rng, size, count):
    images, labels = rng.standard_normal((size, 3, 4, 4)), rng.integers(0, 5, size)
    parts = list(accumulation.parts((images, labels), count))
    assert len(parts) == min(size, count)
    assert np.array_equal(np.concatenate([part for part, _, _ in parts]), images)
    assert np.array_equal(np.concatenate([part for _, part, _ in parts]), labels)
    means = [part.mean() * share for part, _, share in parts]
    assert sum(means) == pytest.approx(images.mean())
    lengths = [len(part) for part, _, _ in parts]
    assert max(lengths) - min(lengths) <= 1


def test_binary_cross_entropy_is_its_definition_after_smoothing(rng):
    logits = (5 * rng.standard_normal((4, 3))).astype(np.float32)
    soft = rng.dirichlet(np.ones(3), 4).astype(np.float32)
    labels = np.array([0, 2, 1, 1], np.int32)
    for given, targets in ((labels, np.eye(3)[labels]), (soft, soft)):
        smooth = 0.9 * targets + 0.1 / 3
        sigmoid = 1 / (1 + np.exp(-logits.astype(np.float64)))
        expected = -(smooth * np.log(sigmoid) + (1 - smooth) * np.log(1 - sigmoid)).mean()
        result = losses.binary_cross_entropy(mge.Tensor(logits), mge.Tensor(given), 0.1)
        assert float(result.numpy()) == pytest.approx(expected, rel=1e-5)
    huge = mge.Tensor(np.array([[200.0, -200.0]], np.float32))
    result = losses.binary_cross_entropy(huge, mge.Tensor(np.array([1], np.int32)))
    assert float(result.numpy()) == pytest.approx(200)


def test_the_loss_of_the_settings_is_that_of_every_head(tiny):
    outputs = {"main": mge.Tensor(np.zeros((2, 3), np.float32)),
               "other": mge.Tensor(np.ones((2, 3), np.float32))}  # fmt: skip
    labels = mge.Tensor(np.array([0, 1], np.int32))
    loss, _ = losses.classification(outputs, labels, 0.0, 0.5, "bce")
    alone = [losses.binary_cross_entropy(outputs[n], labels).numpy() for n in ("main", "other")]
    assert float(loss.numpy()) == pytest.approx(alone[0] + 0.5 * alone[1])
