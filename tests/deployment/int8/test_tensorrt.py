"""Files for TensorRT follow its documented rules, and each check of a rule can fail."""

from dataclasses import replace
from functools import cache

import models
from models import equivalence

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from deployment.int8 import graph, ptq, qdq, ranges
from deployment.int8.dialects import DIALECTS, Scheme
from deployment.onnx_graph import to_onnx
from tests.deployment.int8.tensorrt_rules import RULES
from tests.deployment.networks import SMALL

TENSORRT = DIALECTS["tensorrt"]


def quantized(model, images, dialect=TENSORRT, **options):
    scheme = Scheme(limited=False, dialect=dialect, **options)
    held = ranges.histograms(model, qdq.activations(model, scheme), images)
    bounds = {name: ranges.minmax(histogram, dialect.grid) for name, histogram in held.items()}
    return qdq.to_qdq(model, bounds, scheme)


def broken(model):
    """Rules that a file breaks."""
    return {text for text, check in RULES.items() if check(model)}


@cache
def network(kind):
    """A small float network with random weights, images and its logits of them."""
    images = np.random.default_rng(0).standard_normal((8, 3, 48, 48), np.float32)
    images *= np.linspace(0.3, 2, 8, dtype=np.float32)[:, None, None, None]
    model = SMALL[kind]()
    equivalence.randomize(model, images)
    model = models.to_deploy(model)
    model.eval()
    return to_onnx(model, (48, 48), 17, "batch", "input", "logits"), images


@pytest.mark.parametrize("kind", SMALL)
def test_every_family_follows_every_rule(kind):
    model, images = network(kind)
    int8 = quantized(model, images)
    onnx.checker.check_model(int8, full_check=True)
    assert {text: check(int8) for text, check in RULES.items() if check(int8)} == {}


@pytest.mark.parametrize("kind", SMALL)
def test_with_a_layer_in_float_what_reads_int8_still_ends_in_it(kind):
    """But for the rules that layers in float break themselves."""
    model, images = network(kind)
    scheme = Scheme(limited=False, dialect=TENSORRT)
    held = ranges.histograms(model, qdq.activations(model, scheme), images)
    bounds = {name: ranges.minmax(histogram, TENSORRT.grid) for name, histogram in held.items()}
    kept = [text for text in RULES if text.startswith(("an operator without", "a tensor", "quant"))]
    for node in graph.layers(model):
        mixed = replace(scheme, in_float=frozenset([node.name]))
        chosen = {name: bounds[name] for name in qdq.activations(model, mixed)}
        int8 = qdq.to_qdq(model, chosen, mixed)
        assert {text: RULES[text](int8) for text in kept if RULES[text](int8)} == {}, node.name


@pytest.mark.parametrize("kind", ["MobileOne", "RepViT", "FastViT"])
def test_onnxruntime_computes_it_nearly_as_exactly_as_its_own_file(kind):
    """Values behind a ReLU have 127 steps instead of 255, which is 6 dB."""
    model, images = network(kind)
    expected = graph.logits(model, images)
    noise = {}
    for target in ("onnxruntime", "tensorrt"):
        scheme = Scheme(limited=False, dialect=DIALECTS[target])
        int8 = ptq.quantize(model, images, scheme, "mse").to_qdq()
        noise[target] = graph.sqnr(expected, graph.logits(int8, images))
    assert noise["tensorrt"] > max(20, noise["onnxruntime"] - 8), noise


def constant(model, ending, change, which=0):
    """Change the value of one of the initializers whose names have an ending."""
    tensor = [t for t in model.graph.initializer if t.name.endswith(ending)][which]
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)), tensor.name))


def nodes(model, kind):
    return [node for node in model.graph.node if node.op_type == kind]


def pair_on(model, name, suffix="again"):
    """Give a tensor a pair, which all of its readers read."""
    readers = [node for node in model.graph.node if name in node.input]
    steps = ["input.scale", "input.zero"]
    q, dq = f"{name}.{suffix}.q", f"{name}.{suffix}"
    for node in readers:
        node.input[:] = [dq if given == name else given for given in node.input]
    model.graph.node.extend(
        [
            helper.make_node("QuantizeLinear", [name, *steps], [q], q),
            helper.make_node("DequantizeLinear", [q, *steps], [dq], dq),
        ]
    )


def an_old_opset(model):
    model.opset_import[0].version = 11


def an_integer_convolution(model):
    nodes(model, "Conv")[0].op_type = "ConvInteger"


def an_unsigned_activation(model):
    constant(model, ".zero", lambda zero: zero.astype(np.uint8))


def a_zero_point(model):
    constant(model, "input.zero", lambda zero: zero + np.int8(1))


def a_scale_of_zero(model):
    constant(model, "input.scale", lambda scale: scale * 0)


def scales_of_an_activation(model):
    constant(model, "input.scale", lambda scale: np.repeat(scale, 3))
    constant(model, "input.zero", lambda zero: np.repeat(zero, 3))


def weights_along_axis_1(model):
    node = next(n for n in nodes(model, "DequantizeLinear") if n.attribute)
    node.attribute[0].i = 1


def a_float_input(model):
    node = nodes(model, "Conv")[1]
    node.input[0] = node.input[0].removesuffix(".dequantized")


def a_pair_before_an_activation(model):
    pair_on(model, nodes(model, "Relu")[0].input[0])


def a_second_pair_at_a_fork(model):
    node = nodes(model, "QuantizeLinear")[1]
    twin = helper.make_node("QuantizeLinear", node.input, ["twin"], "twin")
    model.graph.node.append(twin)


def no_pair_behind_a_gate(model):
    """The convolution behind a squeeze-and-excitation reads the product in float."""
    gates = {n.output[0] for n in nodes(model, "Sigmoid")}
    product = next(n.output[0] for n in nodes(model, "Mul") if gates & {*n.input})
    for node in nodes(model, "Conv"):
        node.input[0] = node.input[0].replace(f"{product}.dequantized", product)


def weights_of_a_matrix_product_that_are_not_transposed(model):
    attributes = nodes(model, "Gemm")[0].attribute
    attributes.remove(next(a for a in attributes if a.name == "transB"))


def another_scale_of_a_dequantizer(model):
    constants = {tensor.name for tensor in model.graph.initializer}
    node = next(n for n in nodes(model, "DequantizeLinear") if n.input[0] not in constants)
    scale = next(t for t in model.graph.initializer if t.name == node.input[1])
    model.graph.initializer.append(
        onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), "twice")
    )
    node.input[1] = "twice"


def a_pair_on_the_logits(model):
    name = model.graph.output[0].name
    pair_on(model, name)
    model.graph.output[0].name = f"{name}.again"


PLANTED = {
    an_old_opset: "opset 13 to 20",
    an_integer_convolution: "no operator that the parser refuses",
    an_unsigned_activation: "quantized tensors are int8",
    a_zero_point: "zero points are constants, 0",
    a_scale_of_zero: "scales are positive",
    scales_of_an_activation: "activations have one scale",
    weights_along_axis_1: "weights have a scale for each output channel",
    weights_of_a_matrix_product_that_are_not_transposed: "a matrix product's weights are stored",
    another_scale_of_a_dequantizer: "QuantizeLinear and its DequantizeLinear share scale",
    a_float_input: "a layer with int8 weights has an int8 input",
    a_pair_before_an_activation: "no pair between a convolution and the activation",
    a_second_pair_at_a_fork: "a tensor that several operators read has one pair",
    no_pair_behind_a_gate: "an operator without weights that reads int8 is followed by a pair",
    a_pair_on_the_logits: "the logits are float",
}
OTHER_DIALECTS = {  # an attribute of the dialect and another value -> the rule that then breaks
    ("grid", DIALECTS["onnxruntime"].grid): "quantized tensors are int8",
    ("int32_biases", True): "biases stay float",
    ("skip_alone", False): "of a residual addition the skip input alone has a pair",
    ("behind_layers", True): "no pair between a convolution and the activation",
    ("before_pools", False): "an average pooling has a pair in front of it",
    ("before_flatten", False): "an average pooling has a pair in front of it",
}


def test_every_rule_has_a_planted_violation():
    texts = [*PLANTED.values(), *OTHER_DIALECTS.values()]
    assert all(any(rule.startswith(text) for text in texts) for rule in RULES)


@pytest.mark.parametrize("plant", PLANTED, ids=lambda plant: plant.__name__)
def test_a_planted_violation_is_seen(plant):
    int8 = quantized(*network("RepViT"))
    assert broken(int8) == set()
    plant(int8)
    assert any(text.startswith(PLANTED[plant]) for text in broken(int8))


@pytest.mark.parametrize("attribute", OTHER_DIALECTS, ids=lambda attribute: attribute[0])
def test_every_attribute_of_the_dialect_is_needed(attribute):
    name, value = attribute
    int8 = quantized(*network("RepViT"), replace(TENSORRT, **{name: value}))
    assert any(text.startswith(OTHER_DIALECTS[attribute]) for text in broken(int8))
