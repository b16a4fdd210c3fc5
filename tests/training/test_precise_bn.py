import models

import megengine as mge
import numpy as np
import pytest

from training import precise_bn, swap
from utils import UserError


def snapshot(model):
    return {name: tensor.numpy().copy() for name, tensor in swap.tensors(model).items()}


def batches(rng, count=5):
    """Batches that differ from each other, so that the spread of their means counts."""
    return [
        (rng.standard_normal((8 + i % 2, 3, 32, 32)) + offset).astype(np.float32)
        for i, offset in enumerate(np.linspace(-2, 3, count))
    ]


def test_the_statistics_are_those_of_all_positions_of_all_images(tiny, rng):
    model = tiny()
    data = batches(rng)
    found = precise_bn.statistics(model, data)
    model.train()
    # the first layers see the images alone, whatever the batch
    maps = [model.stage0.dense.conv(mge.Tensor(images)).numpy() for images in data]
    maps = np.concatenate(maps).astype(np.float64)
    mean, var = maps.mean((0, 2, 3)), maps.var((0, 2, 3))
    got_mean, got_var = (
        found[f"stage0.dense.bn.running_{name}"].numpy().ravel() for name in ("mean", "var")
    )
    np.testing.assert_allclose(got_mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(got_var, var, rtol=1e-4)


@pytest.mark.parametrize("arch", ["RepViTM0_6", "RepGhost050"])
def test_every_batch_norm_is_covered_and_training_does_not_notice(arch, rng):
    model = models.create(arch, 4)
    model.train()
    before = snapshot(model)
    found = precise_bn.statistics(model, batches(rng, 2))
    assert found.keys() == {name for name, _ in model.named_buffers()}
    after = snapshot(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
    assert model.training
    momenta = {getattr(module, "momentum", 0.9) for module in model.modules()}
    assert momenta == {0.9}
    assert all(tensor.shape == before[name].shape for name, tensor in found.items())
    # a hook left behind would stay in the way of saving and of speed
    assert not any(module._forward_hooks for module in model.modules())


def test_one_batch_gives_in_evaluation_what_training_sees(tiny, rng):
    """With the statistics of a batch, evaluating this batch is as in training mode."""
    model = tiny("groups")
    (images,) = batches(rng, 1)
    found = precise_bn.statistics(model, [images])
    with swap.swapped(model, found):
        model.eval()
        evaluated = model(mge.Tensor(images)).numpy()
    model.train()
    trained = model(mge.Tensor(images)).numpy()
    np.testing.assert_allclose(evaluated, trained, rtol=1e-3, atol=1e-3 * np.abs(trained).max())


def test_no_images_is_a_sentence_and_changes_nothing(tiny):
    model = tiny()
    before = snapshot(model)
    with pytest.raises(UserError, match="none of the images for --precise-bn"):
        precise_bn.statistics(model, [])
    after = snapshot(model)
    assert all(np.array_equal(before[name], after[name]) for name in before)
