"""Translate a network into an ONNX model, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import megengine as mge
import megengine.module as M
import numpy as np
import onnx
from onnx import TensorProto, helper

from .onnx_operators import HANDLERS, Graph
from .tracing import ExportError, Unsupported, in_channels, replay


def to_onnx(
    model: M.Module,
    size: tuple[int, int],
    opset: int,
    batch: int | str,
    input_name: str,
    output_names: str | Sequence[str],
    free_size: bool = False,
) -> onnx.ModelProto:
    """Return the ONNX model of a network in evaluation mode, for images [N, C, *size].

    Args:
        model: network with one input and one or several outputs.
        size: height and width of the images.
        opset: version of ONNX's operator set.
        batch: N, or the dimension's name for any N.
        input_name, output_names: name of the input, and of the output or of each of several.
        free_size: take images of any height and width; `size` is then only what is traced.

    Raises ExportError when an operator has no handler, naming its module, and when the name of the
    input or of an output is already in use.
    """
    output_names = [output_names] if isinstance(output_names, str) else list(output_names)
    graph = Graph()

    def convert(
        path: str, operator: Callable | str | type, arguments: Sequence, named: dict[str, Any]
    ) -> str:
        graph.module = path
        if operator not in HANDLERS:
            name = getattr(operator, "__name__", operator)
            raise Unsupported(
                f"uses an operator that has no handler for ONNX: {name}; "
                "add one to deployment/onnx_operators.py or use another operator"
            )
        return HANDLERS[operator](graph, *arguments, **named)

    results = replay(model, size, input_name, convert)
    for name in (input_name, *output_names):
        if name in graph.initializers or name in (node.name for node in graph.nodes):
            raise ExportError(f"{name!r} is the name of something in the network; take another")
    names = dict(zip(results, output_names, strict=True))
    for node in graph.nodes:
        for tensors in (node.input, node.output):
            tensors[:] = [names.get(tensor, tensor) for tensor in tensors]

    shape = [batch, in_channels(model), *(("height", "width") if free_size else size)]
    outputs = [
        _tensor(name, [batch, *_dimensions(name, channels, sides, free_size)])
        for name, (_, channels, *sides) in zip(
            output_names, _output_shapes(model, size), strict=True
        )
    ]
    opsets = [helper.make_opsetid("", opset)]
    return helper.make_model(
        helper.make_graph(
            graph.nodes,
            getattr(model, "arch", type(model).__name__),
            [_tensor(input_name, shape)],
            outputs,
            list(graph.initializers.values()),
        ),
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(
            opsets
        ),  # the default is newer than many runtimes support
    )


def _output_shapes(model: M.Module, size: tuple[int, int]) -> list[tuple[int, ...]]:
    """Return the shape of each output for one image."""
    outputs = model(mge.Tensor(np.zeros((1, in_channels(model), *size), np.float32)))
    outputs = outputs if isinstance(outputs, tuple | list) else [outputs]
    return [tuple(output.shape) for output in outputs]


def _dimensions(name: str, channels: int, sides: Sequence[int], free_size: bool) -> list[int | str]:
    if free_size and sides:
        return [channels, f"{name}_height", f"{name}_width"]
    return [channels, *sides]


def _tensor(name: str, shape: list[int | str]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
