"""A floor of accuracy keeps the fewest layers in float, by measured sensitivity."""

from dataclasses import replace

import numpy as np
import pytest

from deployment.int8 import floor, graph, ptq, qdq
from deployment.int8.dialects import DIALECTS, Scheme


@pytest.fixture
def spoiled(float_onnx, images):
    """A network whose first layer has huge weights for a channel that is black in all images, and
    so many steps fewer for the others."""
    images[:, 0] = 0
    model = float_onnx("RepVGG")
    first = graph.layers(model)[0].input[1]
    kernel = graph.weights(model)[first].copy()
    kernel[:, 0] = 30 * np.abs(kernel).max()
    model = graph.with_weights(model, {first: kernel})
    return ptq.quantize(model, images, Scheme(), "minmax")


def test_the_spoiled_layer_is_the_most_sensitive(spoiled, images):
    noise = floor.sensitivity(spoiled, images)
    assert {*noise} == {node.name for node in graph.layers(spoiled.model)}
    assert [*noise.values()] == sorted(noise.values())
    worst, second, *_ = noise
    assert worst == graph.layers(spoiled.model)[0].name and noise[worst] < noise[second] - 10


def test_that_layer_alone_holds_a_floor(spoiled, images):
    expected = graph.logits(spoiled.equalized, images)

    def measure(int8):
        return graph.sqnr(expected, graph.logits(int8, images))

    least = measure(spoiled.to_qdq()) + 6
    outcome = floor.hold(spoiled, images, measure, least)
    assert outcome.holds and outcome.quality >= least
    assert outcome.in_float == [graph.layers(spoiled.model)[0].name]
    assert outcome.quality == measure(outcome.quantized.to_qdq())


@pytest.mark.parametrize("places", [(0,), (1, 6), (2, 3, 5)])
def test_the_fewest_layers_hold_the_floor(places, spoiled, images):
    """A floor that some layers hold, wherever they stand among the sensitive ones."""
    order = [*floor.sensitivity(spoiled, images)]
    needed = {order[i] for i in places}
    kernels = {n.input[1] for n in graph.layers(spoiled.model) if n.name in needed}

    def measure(int8):
        return float(kernels <= {tensor.name for tensor in int8.graph.initializer})

    outcome = floor.hold(spoiled, images, measure, 1)
    assert outcome.holds and {*outcome.in_float} == needed


def test_nothing_is_kept_where_int8_holds(spoiled, images):
    outcome = floor.hold(spoiled, images, lambda _: 1.0, 0.5)
    assert outcome.holds and outcome.in_float == [] and outcome.measurements == 1
    assert outcome.quantized is spoiled and outcome.sensitivity == {}


def test_a_floor_that_cannot_be_held(spoiled, images):
    outcome = floor.hold(spoiled, images, lambda _: 0.0, 0.5)
    assert not outcome.holds and len(outcome.in_float) == len(graph.layers(spoiled.model)) - 1


@pytest.mark.parametrize("needed", range(1, 12))
def test_as_few_measurements_as_stated(needed):
    tried = []

    def holds(count):
        tried.append(count)
        return count >= needed

    assert floor._fewest(holds, 11) == needed
    assert len(tried) <= 2 * np.log2(needed) + 2
    assert floor._fewest(lambda count: False, 11) == 11


@pytest.mark.parametrize("target", DIALECTS)
def test_layers_in_float_read_float(target, float_onnx, images):
    """Their weights and input are those of the float network; other layers stay int8."""
    model = float_onnx("MobileOne")
    scheme = Scheme(dialect=DIALECTS[target])
    quantized = ptq.quantize(model, images, scheme, "minmax")
    names = [node.name for node in graph.layers(model)[2:4]] + [graph.layers(model)[-1].name]
    mixed = floor.keep_in_float(quantized, names, images)
    initializers = {t.name: t.data_type for t in mixed.to_qdq().graph.initializer}
    dequantized = {n.output[0] for n in mixed.to_qdq().graph.node if n.op_type[0] == "D"}
    for node in mixed.to_qdq().graph.node:
        if node.op_type in graph.LAYERS:
            kept = node.name in names
            assert (node.input[1] in initializers) == kept
            assert (node.input[0] in dequantized) == (not kept) or "Flatten" in node.input[0]
    expected = graph.logits(quantized.equalized, images)
    assert graph.sqnr(expected, graph.logits(mixed.to_qdq(), images)) > graph.sqnr(
        expected, graph.logits(quantized.to_qdq(), images)
    )
    # everything in float is the float network again
    every = floor.keep_in_float(quantized, [n.name for n in graph.layers(model)], images)
    assert qdq.activations(model, replace(scheme, in_float=every.scheme.in_float)) == [] or (
        graph.sqnr(expected, graph.logits(every.to_qdq(), images)) > 30
    )
