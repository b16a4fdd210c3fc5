"""The networks against logits of the original implementations; see tests/golden/weights.py."""

import importlib.util
import json
from pathlib import Path

import megengine as mge
import numpy as np
import pytest

import models
from training.checkpoint import load_state

GOLDEN = Path(__file__).resolve().parent.parent / "golden"

CASES = {
    "dingxiaoh-RepVGG-A0": "RepVGGA0",
    "dingxiaoh-RepVGG-B1g4": "RepVGGB1g4",
    "dingxiaoh-RepVGGplus-L2pse": "RepVGGplusL2pse",
    "dingxiaoh-deploy-RepVGG-A0": "RepVGGA0",
}
RENAMED = {
    "rbr_dense": "dense",
    "rbr_1x1": "pointwise",
    "rbr_identity": "identity",
    "rbr_reparam": "reparam",
    "post_se": "se",
    "_aux.0": "_aux.downsample",
    "_aux.3": "_aux.linear",
    ".blocks.": ".",
    "stage3_first.": "stage3.",
}


def our_name(key):
    for old, new in RENAMED.items():
        key = key.replace(old, new)
    if key.startswith("stage3_second."):  # the original splits the 24 blocks of stage 3
        _, index, rest = key.split(".", 2)
        key = f"stage3.{int(index) + 12}.{rest}"
    return key


def golden_weights():
    spec = importlib.util.spec_from_file_location("golden_weights", GOLDEN / "weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("case", CASES)
def test_logits_agree_with_the_original_before_and_after_fusion(case):
    golden, weights = np.load(GOLDEN / f"{case}.npz"), golden_weights()
    shapes = json.loads(str(golden["shapes"]))
    source = weights.fill(shapes, float(golden["gamma"]))
    model = models.create(CASES[case], deploy="deploy" in case)
    wanted = model.state_dict()
    state = {
        our_name(key): value.reshape(wanted[our_name(key)].shape)
        for key, value in source.items()
        if not key.endswith("num_batches_tracked")
    }
    load_state(model, state, case)
    expected = golden["logits"]
    for network in (model, models.to_deploy(model)):
        network.eval()
        logits = network(mge.Tensor(weights.image(int(golden["size"])))).numpy()
        assert np.abs(logits - expected).max() <= 1e-4 * np.abs(expected).max()
