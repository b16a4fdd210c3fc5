"""Bias correction: the means of every layer are the float network's again."""

import numpy as np
import pytest

from deployment.int8 import bias, graph, ptq, qdq, ranges
from tests.support import slow_but


@pytest.mark.parametrize(
    "kind",
    slow_but(
        ["RepVGG, SE", "MobileOne"], ["RepVGG, SE", "MobileOne", "RepViT", "RepGhost", "FastViT"]
    ),
)
@pytest.mark.parametrize("activations", [True, False])
def test_means_are_put_right(kind, activations, float_onnx, images):
    images = images[:6]
    model = float_onnx(kind)
    held = ranges.histograms(model, qdq.activations(model), images) if activations else {}
    bounds = {name: (h.low * 0.7, h.high * 0.7) for name, h in held.items()}  # clips a lot
    target = bias.means(model, images)
    corrected = bias.correct(model, bounds, images, target)
    before = bias.means(qdq.to_qdq(model, bounds), images)
    after = bias.means(qdq.to_qdq(corrected.model, bounds), images)

    def worst(found):
        return max(np.abs(found[n] - t).max() / np.abs(t).max() for n, t in target.items())

    # rounding differs by a step now and then between the emulation and the kernels
    assert worst(after) < 0.2 * worst(before)


@pytest.mark.slow
def test_less_noise_than_without(float_onnx, images):
    """The whole of it, on other images than those it was calibrated on."""
    model = float_onnx("MobileOne")
    networks, found = ptq.schemes(model, images[:12])
    expected = graph.logits(model, images[12:])
    noise = {
        name: graph.sqnr(expected, graph.logits(network, images[12:]))
        for name, network in networks.items()
        if name != "float"
    }
    assert noise["W8A8 per-channel"] > noise["W8A8 per-tensor, plain"] + 6
    assert noise["W8 per-channel"] > noise["W8A8 per-channel"]
    full = found.pop("W8A8 per-channel, full range")
    assert full.clip == found["W8A8 per-channel"].clip
    assert noise["W8A8 per-channel, full range"] > noise["W8A8 per-channel"]
    for name, best in found.items():
        assert len(best.tried) == 4 and best.tried[best.clip] == max(best.tried.values())
        assert noise[name] > noise[f"{name}, plain"]
