"""TensorRT's documented rules of explicit quantization, each a check of an ONNX graph.

A rule returns a sentence for each place that breaks it. Sources: NvInfer.h (IQuantizeLayer), the
parser onnx-tensorrt 10.1 (onnxOpImporters.cpp, docs/operators.md), the developer guide's chapter on
explicit quantization, and TensorRT's tools tensorflow-quantization and pytorch-quantization.
"""

from functools import cached_property

import numpy as np
from onnx import TensorProto, numpy_helper

RULES = {}
REFUSED = ("QLinearConv", "QLinearMatMul", "DynamicQuantizeLinear", "ConvInteger", "MatMulInteger")
POINTWISE = ("Add", "Sub", "Mul", "Div", "Erf", "Relu", "Sigmoid", "HardSigmoid")
POOLS = ("AveragePool", "GlobalAveragePool")
MOVES = ("Flatten", "Reshape", "Transpose", "MaxPool")  # commute with Q and DQ


class Graph:
    """An ONNX graph with its arrows."""

    def __init__(self, model):
        self.model, self.nodes = model, [*model.graph.node]
        self.constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
        self.source = {name: node for node in self.nodes for name in node.output}

    @cached_property
    def readers(self):
        arrows = {}
        for node in self.nodes:
            for name in node.input:
                arrows.setdefault(name, []).append(node)
        return arrows

    def of(self, *kinds):
        return [node for node in self.nodes if node.op_type in kinds]

    def kind(self, name):
        """The operator that computes a tensor, without those that only move values."""
        node = self.source.get(name)
        while node is not None and node.op_type in MOVES:
            node = self.source.get(node.input[0])
        return node.op_type if node is not None else ""

    def is_int8(self, name):
        return self.kind(name) == "DequantizeLinear"

    @property
    def weights(self):
        """DequantizeLinear nodes of constants."""
        return [n for n in self.of("DequantizeLinear") if n.input[0] in self.constants]

    def after(self, name):
        """The operators that read a tensor, through those that only move values."""
        for node in self.readers.get(name, []):
            yield from self.after(node.output[0]) if node.op_type in MOVES else [node]


def rule(text):
    def register(check):
        RULES[text] = lambda model: [*check(Graph(model))]
        return check

    return register


@rule("opset 13 to 20, for scales of channels")
def opset(graph):
    version = next(o.version for o in graph.model.opset_import if o.domain == "")
    if not 13 <= version <= 20:
        yield f"opset {version}"


@rule("no operator that the parser refuses")
def operators(graph):
    yield from (node.name for node in graph.of(*REFUSED))


@rule("quantized tensors are int8, never uint8 or int32")
def types(graph):
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        stored = [graph.constants[name] for name in node.input if name in graph.constants]
        yield from (f"{node.name}: {a.dtype}" for a in stored if a.dtype in (np.uint8, np.int32))
        if len(node.input) < 3:
            yield f"{node.name}: without a zero point ONNX means uint8"


@rule("zero points are constants, 0, and as many as scales")
def zero_points(graph):
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale, zero = (graph.constants.get(name) for name in node.input[1:3])
        if zero is None or zero.any() or zero.shape != scale.shape:
            yield node.name


@rule("scales are positive constants in float32")
def scales(graph):
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        scale = graph.constants.get(node.input[1])
        if scale is None or scale.dtype != np.float32 or not (scale > 0).all():
            yield node.name


@rule("activations have one scale")
def scale_of_activations(graph):
    weights = {node.name for node in graph.weights}
    for node in graph.of("QuantizeLinear", "DequantizeLinear"):
        if node.name not in weights and graph.constants[node.input[1]].ndim:
            yield node.name


@rule("weights have a scale for each output channel, along axis 0")
def scales_of_weights(graph):
    for node in graph.weights:
        values, scale = (graph.constants[name] for name in node.input[:2])
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        if scale.shape != values.shape[:1] or axis != 0:
            yield node.name


@rule(
    "a matrix product's weights are stored [classes, inputs], so that their axis 0 is the outputs"
)
def matrix_products(graph):
    for node in graph.of("Gemm"):
        if not next((a.i for a in node.attribute if a.name == "transB"), 0):
            yield node.name


@rule("QuantizeLinear and its DequantizeLinear share scale and zero point")
def one_scale_for_a_pair(graph):
    for node in graph.of("DequantizeLinear"):
        quantizer = graph.source.get(node.input[0])
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            continue  # of weights
        both = zip(quantizer.input[1:], node.input[1:], strict=True)
        if not all(np.array_equal(graph.constants[a], graph.constants[b]) for a, b in both):
            yield node.name


@rule("biases stay float, without a pair")
def biases(graph):
    for node in graph.of("Conv", "Gemm"):
        if (
            len(node.input) > 2
            and getattr(graph.constants.get(node.input[2]), "dtype", None) != np.float32
        ):
            yield node.name


@rule("a layer with int8 weights has an int8 input, and the other way round")
def layers(graph):
    for node in graph.of("Conv", "Gemm"):
        if not (graph.is_int8(node.input[0]) and graph.is_int8(node.input[1])):
            yield node.name


@rule("no pair between a convolution and the activation behind it")
def activation_functions(graph):
    for node in graph.of("QuantizeLinear"):
        pairs = graph.readers.get(node.output[0], [])
        readers = [reader.op_type for pair in pairs for reader in graph.after(pair.output[0])]
        useful = [kind for kind in readers if kind not in POINTWISE or kind == "Add"]
        if not useful and graph.kind(node.input[0]) in ("Conv", "Gemm"):
            yield node.name
        if "Relu" in readers:
            yield node.name


@rule("of a residual addition the skip input alone has a pair; the other is a convolution's output")
def additions(graph):
    constant = {n.output[0] for n in graph.of("Constant")} | graph.constants.keys()
    for node in graph.of("Add"):
        if constant & {*node.input} or any(graph.kind(name) == "Erf" for name in node.input):
            continue
        kinds = sorted(graph.kind(name) for name in node.input)
        if kinds != ["Conv", "DequantizeLinear"]:
            yield f"{node.name}: {kinds}"


@rule("a tensor that several operators read has one pair")
def forks(graph):
    for name, readers in graph.readers.items():
        if sum(node.op_type == "QuantizeLinear" for node in readers) > 1:
            yield name


@rule("an average pooling has a pair in front of it, and one right behind it")
def pools(graph):
    for node in graph.of(*POOLS):
        behind = {reader.op_type for reader in graph.readers[node.output[0]]}
        if not graph.is_int8(node.input[0]) or behind != {"QuantizeLinear"}:
            yield node.name


@rule("an operator without weights that reads int8 is followed by a pair")
def int8_outputs(graph):
    def float_ends(node):
        for reader in graph.after(node.output[0]):
            if reader.op_type in POINTWISE:
                yield from float_ends(reader)
            elif reader.op_type != "QuantizeLinear":
                yield reader.name

    for node in graph.of(*POINTWISE, *POOLS):
        if any(graph.is_int8(name) for name in node.input):
            yield from (f"{node.name} -> {name}" for name in float_ends(node))


@rule("the logits are float")
def logits(graph):
    for output in graph.model.graph.output:
        if output.type.tensor_type.elem_type != TensorProto.FLOAT or graph.is_int8(output.name):
            yield output.name
