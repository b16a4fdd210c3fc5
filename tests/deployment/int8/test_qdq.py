"""The QDQ form: what is stated is what a runtime computes."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest

from deployment.int8 import bias, graph, qdq, ranges
from deployment.int8.dialects import UINT8, Scheme
from tests.deployment.networks import SMALL
from tests.support import slow_but


def bounds_of(model, images):
    held = ranges.histograms(model, qdq.activations(model), images)
    return {name: ranges.minmax(histogram) for name, histogram in held.items()}


def test_scale_and_zero():
    assert UINT8.scale_and_zero(0, 255) == (1, 0)
    assert UINT8.scale_and_zero(3, 51) == (np.float32(0.2), 0)  # stretched to hold 0
    assert UINT8.scale_and_zero(-1, 254) == (1, 1)
    assert UINT8.scale_and_zero(-51, -3) == (np.float32(0.2), 255)
    assert UINT8.scale_and_zero(0, 0) == (1, 0) == UINT8.scale_and_zero(0, 1e-43)


@pytest.mark.parametrize("kind", SMALL)
@pytest.mark.parametrize("per_channel", slow_but([True], [True, False]))
def test_every_family_computes_what_is_stated(kind, per_channel, float_onnx, images):
    """Against the emulation in float, operator by operator, of `bias.correct`: with the float
    network's own quantized means as its target it corrects nothing."""
    model, scheme = float_onnx(kind), Scheme(per_channel)
    bounds = bounds_of(model, images)
    int8 = qdq.to_qdq(model, bounds, scheme)
    onnx.checker.check_model(int8, full_check=True)
    outputs = [node.output[0] for node in graph.layers(model)]
    (values,) = graph.run(int8, images[:8], outputs)
    means = {
        name: value.mean((0, *range(2, value.ndim)), dtype=np.float64)
        for name, value in zip(outputs, values, strict=True)
    }
    emulated = bias.correct(model, bounds, images[:8], means, scheme).logits
    assert graph.sqnr(emulated, graph.logits(int8, images[:8])) > 30
    assert graph.sqnr(graph.logits(model, images), graph.logits(int8, images)) > 3


@pytest.mark.parametrize("kind", ["RepVGG", "MobileOne", "RepGhost"])
def test_onnxruntime_computes_in_int8(kind, float_onnx, images, tmp_path):
    model = float_onnx(kind)
    int8 = qdq.to_qdq(model, bounds_of(model, images))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    onnxruntime.InferenceSession(int8.SerializeToString(), options)
    found = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    convolutions = Counter(node.op_type for node in model.graph.node)["Conv"]
    assert found["QLinearConv"] == convolutions and found["QGemm"] == 1 and not found["Conv"]


def test_weights_alone(float_onnx, images):
    model = float_onnx("RepVGG")
    int8 = qdq.to_qdq(model, {})
    assert not any(node.op_type == "QuantizeLinear" for node in int8.graph.node)
    assert graph.sqnr(graph.logits(model, images), graph.logits(int8, images)) > 25


def test_a_dead_channel_keeps_its_bias(float_onnx, images):
    """Weights next to 0 must not make steps of the bias so small that int32 overflows."""
    model = float_onnx("RepVGG")
    node = graph.layers(model)[1]
    kernel, shift = (graph.weights(model)[name].copy() for name in node.input[1:])
    kernel[0], shift[0], kernel[1], shift[1] = 1e-20, 1.5, 0, -2.5
    model = graph.with_weights(model, {node.input[1]: kernel, node.input[2]: shift})
    int8 = qdq.to_qdq(model, bounds_of(model, images))
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in int8.graph.initializer}
    found = stored[f"{node.input[2]}.int32"] * stored[f"{node.input[2]}.scale"].astype(np.float64)
    np.testing.assert_allclose(found[:2], [1.5, -2.5], rtol=1e-6)
    assert np.abs(found - shift).max() < 1e-3


def test_the_networks_pairs_fit(float_onnx, images):
    model = float_onnx("MobileOne")
    int8 = qdq.to_qdq(model, bounds_of(model, images))
    kernels = [t for t in int8.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    kernels = [onnx.numpy_helper.to_array(t) for t in kernels if len(t.dims) > 1]
    assert len(kernels) == len(graph.layers(model))
    for kernel in kernels:
        flat = np.sort(kernel.reshape(len(kernel), -1).astype(int), axis=1)
        assert (
            flat[:, -2:].clip(0).sum(1).max() <= 128
            and flat[:, :2].clip(max=0).sum(1).min() >= -128
        )
