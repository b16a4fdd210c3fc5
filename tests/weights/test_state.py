"""What a state dict says."""

import models

import numpy as np
import pytest

from tests.support import ONE_OF_EACH, slow_but
from utils import UserError
from weights import recognition, state
from weights.state import shapes_of


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("arch", slow_but(ONE_OF_EACH, [*ONE_OF_EACH, "RepVGGplusL2pse"]))
def test_shapes_of_are_those_of_the_network(arch, form):
    for num_classes in (1000, 3):
        model = models.create(arch, num_classes, deploy=form == "deploy")
        assert shapes_of(arch, num_classes, form) == models.state_shapes(model)


def test_a_file_makes_no_network_for_images_of_any_number_of_channels():
    shapes = shapes_of("RepVGGA0", 5, "train")
    tensors = {key: np.broadcast_to(np.float32(1), shape) for key, shape in shapes.items()}
    first = {
        key: np.broadcast_to(np.float32(1), (shape[0], 10**6, *shape[2:]))
        for key, shape in shapes.items()
        if key.startswith("stage0.") and len(shape) == 4
    }
    assert state.input_channels(tensors | first) == 3
    with pytest.raises(UserError, match=r"stage0.dense.conv.weight has shape \(48, 1000000,"):
        recognition.recognize(tensors | first, "file", "RepVGGA0")
