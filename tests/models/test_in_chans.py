"""Networks for images of one channel and of four."""

import models
from models import equivalence, init

import megengine as mge
import numpy as np
import pytest

from tests.support import ONE_OF_EACH, slow_but


@pytest.mark.parametrize("arch", slow_but(ONE_OF_EACH, models.list_models()))
def test_only_the_first_kernels_differ(arch):
    with init.uninitialized():
        shapes = {
            n: models.state_shapes(models.create(arch, in_chans=n, deploy=True)) for n in (1, 3, 4)
        }
    for channels in (1, 4):
        changed = [name for name in shapes[3] if shapes[3][name] != shapes[channels][name]]
        assert len(changed) == 1, changed
        assert shapes[channels][changed[0]][1] == channels


@pytest.mark.parametrize(
    "arch, channels", [*((arch, 1) for arch in ONE_OF_EACH), ("RepGhost050", 4)]
)
def test_both_forms_are_equal(arch, channels):
    model = models.create(arch, 3, in_chans=channels)
    assert (model.in_chans, model.options) == (channels, {"in_chans": channels})
    images = np.random.default_rng(0).standard_normal((2, channels, 64, 64), np.float32)
    equivalence.randomize(model, images)
    assert equivalence.compare(model, images).holds
    deployed = models.to_deploy(model)
    assert (deployed.in_chans, deployed.options) == (channels, {"in_chans": channels})
    deployed.eval()
    assert len(deployed.features(mge.Tensor(images))) == 4
    assert models.profile(deployed, 64).macs > 0


def test_three_are_no_option():
    assert models.create("RepGhost050", in_chans=3).options == {}
    both = models.create("RepGhost050", in_chans=1, stride=8)
    assert both.options == {"in_chans": 1, "stride": 8}
    with pytest.raises(ValueError, match="in_chans is 0"):
        models.create("RepGhost050", in_chans=0)
