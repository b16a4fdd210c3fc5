"""Equalization: where it is legal, that it changes no bit, and that it equalizes."""

import numpy as np
import pytest
from onnx import helper, numpy_helper

from deployment.int8 import equalize, graph
from tests.deployment.networks import SMALL
from tests.support import slow_but
from utils import UserError


@pytest.mark.parametrize("kind", slow_but(["RepVGG", "MobileOne", "RepGhost"], SMALL))
def test_not_a_bit_changes(kind, float_onnx, images):
    model = float_onnx(kind)
    for equalized in (equalize.by_weights(model), equalize.by_activations(model, images)):
        equalize.assert_exact(model, equalized, images)
        changed = graph.weights(equalized)
        pairs = [(value, changed[name]) for name, value in graph.weights(model).items()]
        assert any(not np.array_equal(a, b) for a, b in pairs)


def test_what_is_not_exact_is_an_error(float_onnx, images):
    model = float_onnx("RepVGG")
    name = graph.layers(model)[0].input[1]
    other = graph.with_weights(model, {name: graph.weights(model)[name] * 1.001})
    with pytest.raises(UserError, match="equalization has changed the float network"):
        equalize.assert_exact(model, other, images)


def test_the_chains(float_onnx):
    def found(kind):
        model = float_onnx(kind)
        return len(equalize.chains(model)), len(graph.layers(model))

    chains, layers = found("RepVGG")
    assert chains == layers - 1  # plain: each layer with the next
    # GELU is between the convolutions of its blocks; left are those within SE
    model = float_onnx("RepViT")
    for chain in equalize.chains(model):
        between = [n for n in model.graph.node if n.input[:1] == chain.first.output[:1]]
        assert [node.op_type for node in between] in (["Relu"], ["Conv"])


def test_a_map_with_two_readers_is_left_alone():
    """conv -> relu -> conv, but the map behind the ReLU is also added to something."""
    kernel = numpy_helper.from_array(np.ones((3, 3, 1, 1), np.float32), "w")
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "a"),
        helper.make_node("Relu", ["a"], ["r"], "r"),
        helper.make_node("Conv", ["r", "w"], ["b"], "b"),
        helper.make_node("Add", ["b", "r"], ["y"], "y"),
    ]
    value = [helper.make_tensor_value_info(n, 1, [1, 3, 4, 4]) for n in "xy"]
    made = helper.make_graph(nodes, "g", value[:1], value[1:], [kernel])
    assert equalize.chains(helper.make_model(made)) == []
    del nodes[3:]
    nodes[2].output[0] = "y"
    made = helper.make_graph(nodes, "g", value[:1], value[1:], [kernel])
    assert len(equalize.chains(helper.make_model(made))) == 1


def test_channels_get_alike(float_onnx, images):
    """A network whose channels were made unequal, by the same rule, becomes equal again."""
    model = float_onnx("MobileOne")
    equal = equalize.by_activations(model, images)
    name = next(c for c in equalize.chains(model) if graph.group(c.second) > 1).second.input[0]

    def spread(network):
        largest = np.max([v.max((0, 2, 3)) for (v,) in graph.run(network, images, [name])], axis=0)
        largest = largest[largest > 1e-3 * largest.max()]
        return largest.max() / largest.min()

    assert spread(equal) <= 2.01 < spread(model)  # factors are powers of two
