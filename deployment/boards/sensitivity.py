"""Which operators lose most accuracy in int8, measured on images."""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

import numpy as np
import onnx

from deployment.int8 import graph, qdq
from deployment.int8.ranges import Range
from utils import UserError

# operators that a tensor is looked through for the one that computes its values
_TRANSPARENT = ("Relu", "Flatten", "Reshape")


class Sensitive(NamedTuple):
    """Operators to compute in more than int8, and what that is worth.

    Attributes:
        nodes: their names, the most sensitive one first.
        before, after: SQNR of the logits in dB with all operators in int8, and with these in more.
    """

    nodes: list[str]
    before: float
    after: float


def most_sensitive(
    model: onnx.ModelProto,
    bounds: dict[str, Range],
    images: np.ndarray,
    expected: np.ndarray,
    count: int,
) -> Sensitive:
    """Return the `count` operators whose tensors cost most accuracy in int8.

    For each operator that computes a quantized tensor, the int8 network is run once with this
    tensor and the operator's inputs in float; its gain is by how much less noise the logits have.
    16 bits are so much finer than 8 that float stands for them here.

    Args:
        model: network for any batch size, of opset 13 or higher, its biases corrected for int8.
        bounds: ranges of its activations.
        images: images to measure on, float32 [N, C, H, W], normalized.
        expected: logits of the float network for these images, float32 [N, classes].
        count: number of operators.

    Raises UserError if the network has fewer operators.
    """
    operators = _operators(model, bounds)
    if count > len(operators):
        raise UserError(
            f"--int16 {count}: the network has {len(operators)} operators whose results are "
            f"quantized; give at most {len(operators)}"
        )
    int8 = qdq.to_qdq(model, bounds)

    def noise(tensors: Collection[str]) -> float:
        return graph.sqnr(expected, graph.logits(_in_float(int8, tensors), images))

    before = noise(())
    gains = {name: noise(tensors) - before for name, tensors in operators.items()}
    nodes = sorted(gains, key=gains.__getitem__, reverse=True)[:count]
    return Sensitive(nodes, before, noise({t for name in nodes for t in operators[name]}))


def _operators(model: onnx.ModelProto, bounds: dict[str, Range]) -> dict[str, set[str]]:
    """Return operator -> the quantized tensors that it reads and computes."""
    producers = {name: node for node in model.graph.node for name in node.output}
    operators = {}
    for tensor in bounds:
        node = producers.get(tensor)
        while node is not None and node.op_type in _TRANSPARENT:
            node = producers.get(node.input[0])
        if node is not None:
            operators[node.name] = {tensor, *bounds.keys() & {*node.input}}
    return operators


def _in_float(int8: onnx.ModelProto, tensors: Collection[str]) -> onnx.ModelProto:
    """Return a copy of a QDQ network in which what reads these tensors reads them unrounded."""
    copy = onnx.ModelProto()
    copy.CopyFrom(int8)
    float_of = {f"{name}.dequantized": name for name in tensors}
    for node in copy.graph.node:
        node.input[:] = [float_of.get(name, name) for name in node.input]
    return copy
