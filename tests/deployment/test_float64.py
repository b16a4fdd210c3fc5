"""A network in float64 computes what MegEngine does, and decides where float32 is too coarse."""

import models
from models import equivalence, repvgg
from models.layers import SqueezeExcitation

import megengine as mge
import numpy as np
import pytest

from deployment import float64
from tests.support import slow_but


@pytest.mark.parametrize("kind", ["dense", "groups", "se", "qa", "plus"])
def test_small_networks_of_every_kind(tiny, images, kind):
    model = tiny(kind)
    equivalence.randomize(model, images)
    assert_same(model, images[:2])


@pytest.mark.parametrize(
    "arch",
    slow_but(
        ["RepGhost050", "RepViTM0_6"], ["RepGhost050", "RepViTM0_6", "MobileOneS0", "FastViTT8"]
    ),
)
@pytest.mark.parametrize("deploy", slow_but([False], [False, True]))
def test_networks_of_the_other_families(arch, deploy, images):
    mge.random.seed(0)
    assert_same(models.create(arch, 5, deploy), images[:1])


def assert_same(model, images):
    model.train()
    exact = float64.outputs(model, images)
    assert exact.dtype == np.float64 and model.training
    model.eval()
    logits = model(mge.Tensor(images)).numpy()
    assert 0 < np.abs(exact - logits).max() <= 1e-4 * np.abs(exact).max()


def coarse(model, images):
    """A check that float32's rounding errors have spoilt."""
    return equivalence.compare(model, images)._replace(relative_error=1e-3)


def test_a_check_that_rounding_spoilt_is_made_again(tiny, images):
    model = tiny("groups")
    equivalence.randomize(model, images)
    check = float64.confirmed(coarse(model, images), model, images)
    assert check.holds and check.precision == "float64" and check.relative_error < 1e-12
    holds = equivalence.compare(model, images)
    assert float64.confirmed(holds, model, images) is holds
    broken = holds._replace(relative_error=float("nan"))
    assert float64.confirmed(broken, model, images) is broken


def test_a_wrong_fusion_is_refused_in_float64_too(tiny, images, monkeypatch):
    model = tiny("dense")
    equivalence.randomize(model, images)
    right = repvgg.RepVGGBlock.linear_map

    def wrong(block, read):
        kernel, bias = right(block, read)
        return models.reparam.LinearMap(kernel, bias * (1 + 1e-4))

    monkeypatch.setattr(repvgg.RepVGGBlock, "linear_map", wrong)
    check = float64.confirmed(coarse(model, images), model, images)
    assert check.precision == "float64" and not check.holds


@pytest.mark.slow
def test_a_network_that_rounding_moves_is_not_refused(command, monkeypatch, tmp_path):
    """Gates that start far apart, as they do elsewhere, make an untrained RepViT so sensitive."""
    from data.transforms import Preprocessing
    from weights import checkpoint

    # float32's error is 6e-6 to 2e-5, by the processor
    monkeypatch.setattr(equivalence, "TOLERANCE", 1e-6)
    mge.random.seed(0)
    model = models.create("RepViTM0_9")
    for layer in model.modules():
        if isinstance(layer, SqueezeExcitation):
            layer.up.reset_parameters()
    contents = checkpoint.of_model(model, Preprocessing(size=64))
    checkpoint.save(contents, tmp_path / "fresh.pkl")
    status, out, _ = command("verify", "--model", tmp_path / "fresh.pkl")
    assert status == 0 and "equal in float64" in out
    arguments = ["--origin-dir", tmp_path / "fresh.pkl", "--save-dir", tmp_path / "out.pkl"]
    status, out, _ = command("convert_pretrained_weight", *arguments)
    assert status == 0 and "after fusion, in float64" in out
