"""Half precision: an ONNX network that computes in float16 and keeps its float32 ends."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from .tracing import ExportError

TOLERANCE = 1e-2  # of the largest output; float16 rounds to 5e-4, in every layer


def to_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of a float32 network with weights and computation in float16.

    Inputs and outputs stay float32, and are cast. Raises ExportError when a weight is too large for
    float16.
    """
    half = onnx.ModelProto()
    half.CopyFrom(model)
    graph = half.graph
    for tensor in graph.initializer:
        _round(tensor, tensor.name)
    for node in graph.node:
        if node.op_type == "Constant":
            _round(node.attribute[0].t, node.name)
    inner = {value.name: f"{value.name}.half" for value in (*graph.input, *graph.output)}
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [inner.get(name, name) for name in names]
    nodes = [
        *(_cast(value.name, inner[value.name], TensorProto.FLOAT16) for value in graph.input),
        *graph.node,
        *(_cast(inner[value.name], value.name, TensorProto.FLOAT) for value in graph.output),
    ]
    del graph.node[:]
    graph.node.extend(nodes)
    return half


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.Cast", to=to)


def _round(tensor: TensorProto, name: str) -> None:
    """Round a float32 tensor to float16, in place."""
    value = numpy_helper.to_array(tensor)
    if value.dtype != np.float32:
        return
    if np.abs(value).max(initial=0) > np.finfo(np.float16).max:
        raise ExportError(
            f"{name} has values above {np.finfo(np.float16).max:,.0f}, the largest in half "
            "precision; export the network without --half"
        )
    tensor.CopyFrom(numpy_helper.from_array(value.astype(np.float16), tensor.name))
