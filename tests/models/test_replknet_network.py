"""RepLKNet of few channels: fusion, kernels that meet the map, gradients through the fusion."""

import models
from models import equivalence, reparam
from models.replknet import RepLKNetBlock

import megengine as mge
import megengine.module as M
import numpy as np
import pytest


@pytest.fixture
def small(small_replknet, monkeypatch):
    monkeypatch.setattr(models, "BLOCKS", {})


def test_it_is_equal_otherwise(small, command):
    status, out, _ = command("verify", "--arch", "RepLKNet31B")
    assert status == 0 and "all 1 equal" in out


@pytest.mark.parametrize("deploy", [False, True])
def test_features(small, deploy, images):
    model = models.create("replknet31b", 3, deploy)
    model.eval()
    maps = model.features(mge.Tensor(images))
    assert tuple(m.shape[1] for m in maps) == model.num_features == (4, 8, 8, 16)
    assert tuple(64 // m.shape[2] for m in maps) == model.strides == (4, 8, 16, 32)
    assert model(mge.Tensor(images[:, :, :40])).shape == (4, 3)


@pytest.mark.parametrize("stride", [8, 16])
def test_total_stride(small, stride, rng):
    model = models.create("RepLKNet31B", 3, stride=stride)
    images = rng.standard_normal((2, 3, 2 * stride, 2 * stride)).astype(np.float32)
    assert tuple(2 * stride // m.shape[2] for m in model.features(mge.Tensor(images))) == (
        model.strides
    )
    equivalence.randomize(model, images)
    assert equivalence.compare(model, images).holds


@pytest.mark.parametrize("channels", [1, 4])
def test_both_forms_are_equal_for_images_of_other_channels(small, channels, rng):
    model = models.create("RepLKNet31B", 3, in_chans=channels)
    images = rng.standard_normal((2, channels, 64, 64)).astype(np.float32)
    equivalence.randomize(model, images)
    assert equivalence.compare(model, images).holds


def test_the_fused_network_has_no_batch_norm_and_a_linear_layer_like_any(small, images):
    model = models.create("RepLKNet31B", 3)
    equivalence.randomize(model, images)
    fused = models.state_shapes(models.to_deploy(model))
    assert fused == models.state_shapes(models.create("RepLKNet31B", 3, deploy=True))
    assert not any("bn" in key or "norm" in key for key in fused)
    found = reparam.fused_weights(model)
    for name, parameter in models.to_deploy(model).named_parameters():
        value = parameter.numpy()
        assert np.abs(found[name].numpy() - value).max() <= 1e-6 * np.abs(value).max(), name


def test_its_kernels_are_left_to_the_path_that_is_made_for_them(small, images):
    model = models.create("RepLKNet31B", 3)
    assert not model.is_compiled(mge.Tensor(images))


def test_the_classifier_may_be_another_linear_layer(small, images):
    model = models.create("RepLKNet31B", 3)
    model.linear = M.Linear(16, 5, bias=False)
    equivalence.randomize(model, images)
    assert equivalence.compare(model, images).holds
    for other in (M.Identity(), M.Sequential(M.Linear(16, 5))):
        model.linear = other
        with pytest.raises(TypeError, match=f"is a {type(other).__name__} and no Linear; fuse the"):
            models.to_deploy(model)


def test_the_block_is_what_its_docstring_says(rng):
    block = RepLKNetBlock(4, 7)
    x = rng.standard_normal((2, 4, 9, 9)).astype(np.float32)
    equivalence.randomize(block, x)
    block.eval()
    x = mge.Tensor(x)
    inner = block.enter.bn(block.enter.conv(block.enter.norm(x)))
    inner = mge.functional.relu(inner)
    inner = mge.functional.relu(block.spread.large(inner) + block.spread.small(inner))
    y = x + block.leave(inner)
    expected = y + block.project(mge.functional.gelu(block.expand(y)))
    np.testing.assert_allclose(block(x).numpy(), expected.numpy(), atol=1e-5)
