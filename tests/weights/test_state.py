"""What a state dict says."""

import models

import pytest

from tests.support import ONE_OF_EACH, slow_but
from weights.state import shapes_of


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("arch", slow_but(ONE_OF_EACH, [*ONE_OF_EACH, "RepVGGplusL2pse"]))
def test_shapes_of_are_those_of_the_network(arch, form):
    for num_classes in (1000, 3):
        model = models.create(arch, num_classes, deploy=form == "deploy")
        assert shapes_of(arch, num_classes, form) == models.state_shapes(model)
