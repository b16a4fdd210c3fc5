"""Visit the operators of a network in order, as MegEngine's trace_module records them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import reduce
from typing import Any, NamedTuple

import megengine as mge
import megengine.module as M
import numpy as np
from megengine.traced_module import module_tracer as tracer
from megengine.traced_module import trace_module
from megengine.traced_module.expr import CallFunction, CallMethod, GetAttr, Input
from megengine.traced_module.node import ModuleNode, TensorNode
from megengine.traced_module.traced_module import InternalGraph

from utils import UserError


class ExportError(UserError):
    """A network cannot be exported, or the exported file computes something else."""


class Unsupported(Exception):
    """An operator cannot be exported; the message continues a sentence about its module."""


# MegEngine's own layers that are visited operator by operator; it records the others as a whole.
_OPENED = (M.Linear, M.Conv2d, M.BatchNorm1d, M.BatchNorm2d, M.ReLU, M.Sigmoid, M.GELU, M.Identity)


class Weight(NamedTuple):
    """A tensor of the network with its name in the state dict."""

    name: str
    value: np.ndarray


# visit(path, operator, arguments, named arguments), where
# - path is that of the Module that calls the operator, such as "stage1.0.se";
# - operator is a function, the name of a tensor's method, or the class of a MegEngine Module;
# - the arguments are earlier results of visit, Weights and plain values.
Visit = Callable[[str, Callable | str | type, Sequence, dict[str, Any]], Any]


def replay(model: M.Module, size: tuple[int, int], image: Any, visit: Visit) -> list[Any]:
    """Call `visit` for each operator of `model`, in evaluation mode, for images [N, C, *size].

    `image` stands for the input in the arguments, and a result of `visit` for each output of its
    operator. Returns the results for the outputs of the network.
    Raises ExportError, with the Module's path, when `visit` raises Unsupported.
    """
    images = mge.Tensor(np.zeros((1, in_channels(model), *size), np.float32))
    with _opened_layers():
        traced = trace_module(model, images)
    # `traced` is kept alive: its graphs hold weak references to their modules
    return _replay(traced.graph, model, "", (image,), visit)


def in_channels(model: M.Module) -> int:
    """Return the number of channels of a network's images; 3 if it does not say."""
    return getattr(model, "in_chans", 3)


@contextmanager
def _opened_layers() -> Iterator[None]:
    """Make MegEngine record what is within `_OPENED`, and not just that they are called."""
    owner = tracer.module_tracer
    original = vars(owner)["is_builtin"]
    owner.is_builtin = staticmethod(
        lambda module: type(module) in owner._opaque_types and type(module) not in _OPENED
    )
    try:
        yield
    finally:
        owner.is_builtin = original


def _replay(
    graph: InternalGraph, module: M.Module, path: str, inputs: Sequence, visit: Visit
) -> list[Any]:
    values = dict(zip(graph.inputs, (module, *inputs), strict=True))

    def value(argument: Any) -> Any:
        return values[argument] if isinstance(argument, TensorNode | ModuleNode) else argument

    def call(
        path: str, operator: Callable | str | type, arguments: Sequence, named: dict[str, Any]
    ) -> Any:
        try:
            return visit(path, operator, [value(a) for a in arguments],
                         {name: value(a) for name, a in named.items()})  # fmt: skip
        except Unsupported as error:
            place = f"module {path}" if path else "the network itself"
            raise ExportError(f"{place} {error}") from None

    for expr in graph.exprs(recursive=False):
        if isinstance(expr, Input):  # images, which `values` has already
            continue
        if isinstance(expr, GetAttr):  # self.weight, self.stage1, self.scale.factor
            result = reduce(getattr, expr.name.split("."), values[expr.inputs[0]])
            if isinstance(result, mge.Tensor):
                result = Weight(f"{path}.{expr.name}".lstrip("."), result.numpy())
            results = [result]
        elif isinstance(expr, CallFunction):  # F.relu(x)
            results = [call(path, expr.func, (), expr.named_args)]
        elif isinstance(expr, CallMethod) and isinstance(expr.inputs[0], ModuleNode):
            called, arguments = values[expr.inputs[0]], expr.args[1:]
            inner = _path_of(expr.inputs[0])
            if expr.graph is None:  # self.pool(x), of a class of MegEngine's
                results = [call(inner, type(called), arguments, expr.kwargs)]
            else:  # self.stage1(x), of a class of ours or of the user's
                results = _replay(expr.graph, called, inner, [value(a) for a in arguments], visit)
        elif isinstance(expr, CallMethod):  # x.reshape(1, -1), x + y
            results = [call(path, expr.method, expr.args, expr.kwargs)]
        else:  # a constant
            results = [call(path, type(expr).__name__, (), {})]
        if len(results) == 1:  # it stands for each output of F.split
            results *= len(expr.outputs)
        values.update(zip(expr.outputs, results, strict=True))
    return [values[output] for output in graph.outputs]


def _path_of(node: ModuleNode) -> str:
    """Return the path of a Module in the network, whose own class begins the name of the node."""
    return node.qualname.partition(".")[2]
