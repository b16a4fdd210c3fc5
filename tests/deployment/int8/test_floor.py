"""A floor of accuracy keeps the fewest layers in float, by measured sensitivity."""

import numpy as np
import pytest

from deployment.int8 import bias, floor, graph, ptq, qdq
from deployment.int8.dialects import DIALECTS, Scheme
from tests.deployment.networks import SMALL
from tests.support import slow_but


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
    return ptq.quantize(model, images, Scheme(dialect=DIALECTS["tensorrt"]), "minmax")


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


@pytest.mark.parametrize("target", DIALECTS)
@pytest.mark.parametrize("kind", slow_but(["RepVGG, SE", "RepGhost"], SMALL))
def test_every_layer_can_be_in_float(kind, target, float_onnx):
    """No other tensor is quantized then, as it would have no range, and poolings stay whole."""
    model, dialect = float_onnx(kind, opset=17), DIALECTS[target]
    every = {*qdq.activations(model, Scheme(dialect=dialect))}
    pools = [n for n in model.graph.node if n.op_type == "GlobalAveragePool"]
    flattened = {n.output[0]: n.input[0] for n in model.graph.node if n.op_type == "Flatten"}
    pooled = {pool.output[0] for pool in pools if dialect.whole != "nothing"}
    for node in graph.layers(model):
        scheme = Scheme(dialect=dialect, in_float=frozenset([node.name]))
        chosen = qdq.activations(model, scheme)
        assert every.issuperset(chosen), node.name
        if flattened.get(node.input[0], node.input[0]) not in pooled:
            continue
        mixed = qdq.to_qdq(model, dict.fromkeys(chosen, (-1.0, 1.0)), scheme)
        reads = {n.name: n.input[0] for n in mixed.graph.node if n.input}  # constants have none
        for pool in pools:
            assert reads[pool.name] == pool.input[0] or pool.output[0] in chosen


def test_a_drop_of_exactly_the_floor_holds(spoiled, images):
    drop = 100 * 5972 / 10000 - 100 * 6002 / 10000  # 30 images of 10,000
    assert drop < -0.3
    outcome = floor.hold(spoiled, images, lambda _: drop, -0.3)
    assert outcome.holds and outcome.in_float == []


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


@pytest.mark.parametrize("kind", ["MobileOne", "RepVGG, SE"])
def test_rockchips_poolings_are_emulated_as_they_are_written(kind, float_onnx, images):
    """With the layer behind a pooling in float, the pooling reads a map that is not rounded."""
    model = float_onnx(kind)
    scheme = Scheme(dialect=DIALECTS["rknn"])
    quantized = ptq.quantize(model, images, scheme, "minmax")
    pools = {n.output[0] for n in model.graph.node if n.op_type == "GlobalAveragePool"}
    flat = {n.output[0] for n in model.graph.node if n.input and n.input[0] in pools}
    behind = [n.name for n in graph.layers(model) if n.input[0] in pools | flat]
    mixed = floor.keep_in_float(quantized, behind, images)
    int8 = mixed.to_qdq()
    read = {name for node in int8.graph.node for name in node.input}
    read |= {value.name for value in int8.graph.output}
    assert all(set(node.output) <= read for node in int8.graph.node if node.output)  # none is idle
    corrected = bias.correct(
        mixed.equalized, mixed.bounds, images, bias.means(mixed.equalized, images), mixed.scheme
    )
    assert graph.sqnr(corrected.logits, graph.logits(int8, images)) > 30


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_layers_in_float_read_float(target, float_onnx, images):
    """Their weights and input are those of the float network, and there are no other float weights
    but where a runtime has no int8 convolution with a float output."""
    model = float_onnx("MobileOne")
    scheme = Scheme(dialect=DIALECTS[target])
    quantized = ptq.quantize(model, images, scheme, "minmax")
    layers = [node.name for node in graph.layers(model)]
    chosen = [layers[2], layers[-1]]
    mixed = floor.keep_in_float(quantized, chosen, images)
    int8 = mixed.to_qdq()
    weights = {tensor.name for tensor in int8.graph.initializer}
    quantized_tensors = {n.output[0] for n in int8.graph.node if n.op_type == "DequantizeLinear"}
    in_float = {n.name for n in graph.layers(int8) if n.input[1] in weights}
    assert in_float - {*chosen} == ({layers[1]} if target == "onnxruntime" else set())
    assert not any(n.input[0] in quantized_tensors for n in graph.layers(int8) if n.name in chosen)
    corrected = bias.correct(
        mixed.equalized, mixed.bounds, images, bias.means(mixed.equalized, images), mixed.scheme
    )
    assert graph.sqnr(corrected.logits, graph.logits(int8, images)) > 30  # as it is emulated


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_with_all_layers_in_float_it_is_the_float_network(target, float_onnx, images):
    quantized = ptq.quantize(float_onnx("RepVGG"), images, Scheme(dialect=DIALECTS[target]), "mse")
    every = [node.name for node in graph.layers(quantized.model)]
    again = floor.keep_in_float(quantized, every, images).to_qdq()
    assert not any("Quantize" in node.op_type for node in again.graph.node)
