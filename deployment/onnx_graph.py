"""Translate a network into an ONNX model, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import megengine.module as M
import onnx
from onnx import TensorProto, helper

from .onnx_operators import HANDLERS, Graph
from .tracing import ExportError, Unsupported, replay


def to_onnx(
    model: M.Module,
    size: tuple[int, int],
    opset: int,
    batch: int | str,
    input_name: str,
    output_name: str,
) -> onnx.ModelProto:
    """Return the ONNX model of a network in evaluation mode, from [N, 3, *size] to [N, classes].

    `batch` is N, or the dimension's name for any N. Raises ExportError when an operator has no
    handler, naming its module, and when the input's or output's name is already in use.
    """
    graph = Graph()

    def convert(path: str, operator: Callable | str | type, arguments: Sequence, named: dict):
        graph.module = path
        if operator not in HANDLERS:
            name = getattr(operator, "__name__", operator)
            raise Unsupported(
                f"uses an operator that has no handler for ONNX: {name}; "
                "add one to deployment/onnx_operators.py or use another operator"
            )
        return HANDLERS[operator](graph, *arguments, **named)

    last = replay(model, size, input_name, convert)
    for name in (input_name, output_name):
        if name in graph.initializers or name in (node.name for node in graph.nodes):
            raise ExportError(f"{name!r} is the name of something in the network; take another")
    for node in graph.nodes:
        for names in (node.input, node.output):
            names[:] = [output_name if name == last else name for name in names]

    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            getattr(model, "arch", type(model).__name__),
            [_tensor(input_name, [batch, 3, *size])],
            [_tensor(output_name, [batch, model.num_classes])],
            list(graph.initializers.values()),
        ),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(
            opsets
        ),  # the default is newer than many runtimes support
    )


def _tensor(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
