"""A network as an ONNX model: what MegEngine's trace_module records, operator by operator."""

from __future__ import annotations

import megengine as mge
import megengine.module as M
import numpy as np
import onnx
from megengine.traced_module import trace_module
from megengine.traced_module.expr import CallFunction, CallMethod, Expr, GetAttr, Input
from megengine.traced_module.node import ModuleNode, TensorNode
from onnx import TensorProto, helper

from utils import UserError

from .onnx_operators import FUNCTIONS, METHODS, MODULES, Graph, Unsupported, Weight


class ExportError(UserError):
    """A network that cannot be exported, or a file that does not compute what it does."""


def to_onnx(
    model: M.Module,
    size: tuple[int, int],
    opset: int,
    batch: int | str,
    input_name: str,
    output_name: str,
) -> onnx.ModelProto:
    """The model, in evaluation mode, as a checked ONNX model: [N, 3, *size] -> [N, classes].

    `batch` is N, or a name for any N. Raises ExportError for an operator that has no handler, naming the
    module it is in, and for what ONNX's checker and its shape inference do not accept.
    """
    example = mge.Tensor(np.zeros((batch if isinstance(batch, int) else 1, 3, *size), np.float32))
    classes = model(example).shape[1]
    traced = trace_module(model, example).flatten().graph
    graph = Graph()
    values = {traced.inputs[1]: input_name}  # nodes of the trace -> handlers' arguments
    for expr in traced.exprs():
        if not isinstance(expr, Input):
            values[expr.outputs[0]] = _convert(graph, expr, values, model)
    last = values[traced.outputs[0]]
    for node in graph.nodes:
        for names in (node.input, node.output):
            names[:] = [output_name if name == last else name for name in names]

    opsets = [helper.make_opsetid("", opset)]
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            getattr(model, "arch", type(model).__name__),
            [helper.make_tensor_value_info(input_name, TensorProto.FLOAT, [batch, 3, *size])],
            [helper.make_tensor_value_info(output_name, TensorProto.FLOAT, [batch, classes])],
            list(graph.initializers.values()),
        ),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),  # the default is newer than runtimes
    )
    try:
        onnx.checker.check_model(proto, full_check=True)  # with strict shape inference
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ExportError(f"ONNX's checker does not accept the model: {error}") from None
    return proto


def _convert(graph: Graph, expr: Expr, values: dict, model: M.Module) -> str | Weight | M.Module:
    """Add one step of the trace to the graph; returns what stands for its output."""
    path = expr.outputs[0].qualname.partition(".")[2]  # without the network's own name
    graph.module = path.rpartition(".")[0]

    def value(argument):
        return values[argument] if isinstance(argument, TensorNode) else argument

    try:
        if isinstance(expr, GetAttr):
            found = _attribute(model, expr.name)
            return found if isinstance(found, M.Module) else Weight(expr.name, found.numpy())
        if isinstance(expr, CallFunction) and expr.func in FUNCTIONS:
            arguments = {name: value(a) for name, a in expr.named_args.items()}
            return FUNCTIONS[expr.func](graph, **arguments)
        if isinstance(expr, CallMethod) and isinstance(expr.inputs[0], ModuleNode):
            module = values[expr.inputs[0]]
            if type(module) in MODULES:
                return MODULES[type(module)](graph, module, value(expr.inputs[1]))
            raise Unsupported(f"{type(module).__name__}")
        if isinstance(expr, CallMethod) and expr.method in METHODS:
            return METHODS[expr.method](graph, *(value(a) for a in expr.args))
        name = getattr(getattr(expr, "func", None), "__name__", None)
        raise Unsupported(name or getattr(expr, "method", type(expr).__name__))
    except Unsupported as problem:
        where = f"module {graph.module}" if graph.module else "the network itself"
        raise ExportError(
            f"{where} uses what has no handler for ONNX: {problem}; "
            "add one to deployment/onnx_operators.py or use another operator"
        ) from None


def _attribute(model: M.Module, path: str) -> M.Module | mge.Tensor:
    for part in path.split("."):
        model = model[int(part)] if part.isdigit() else getattr(model, part)
    return model
