"""Correction: means and deviations of every layer are the float network's again."""

import numpy as np
import pytest

from deployment.int8 import correction, graph, ptq, qdq, ranges
from tests.support import slow_but


@pytest.mark.parametrize(
    "kind",
    slow_but(
        ["RepVGG, SE", "MobileOne"], ["RepVGG, SE", "MobileOne", "RepViT", "RepGhost", "FastViT"]
    ),
)
@pytest.mark.parametrize("activations", [True, False])
def test_means_and_deviations_are_put_right(kind, activations, float_onnx, images):
    images = images[:6]
    model = float_onnx(kind)
    held = ranges.histograms(model, qdq.activations(model), images) if activations else {}
    bounds = {name: (h.low * 0.8, h.high * 0.8) for name, h in held.items()}  # clips a lot
    target = correction.moments(model, images)
    corrected = correction.correct(model, bounds, images, target)
    before = correction.moments(qdq.to_qdq(model, bounds), images)
    after = correction.moments(qdq.to_qdq(corrected.model, bounds), images)

    def errors(found, moment):
        pairs = [(getattr(found[n], moment), getattr(t, moment)) for n, t in target.items()]
        return [np.abs(value - right).max() / np.abs(right).max() for value, right in pairs]

    # rounding differs by a step now and then between the emulation and the kernels
    assert max(errors(after, "mean")) < 0.2 * max(errors(before, "mean"))
    # the untrained gates give almost the same for all images, which no factor of 1.25 puts right
    assert np.median(errors(after, "deviation")) < 0.2 * np.median(errors(before, "deviation"))


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
