"""A network's map as a differentiable function, computed by a program."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import megengine as mge
import megengine.module as M
from megengine.autodiff import Function
from megengine.core._imperative_rt.core2 import get_grad_key
from megengine.utils.naming import AutoNaming

from ..symbol import Symbol, Trace, Untraceable
from . import memory
from .executor import bits
from .program import Program
from .writer import Writer

_KEPT = 2  # traces of a model, and idle programs of each; a program has memory for all its maps


class Compiled:
    """Programs for one trace, and the memory of what they return.

    A second program is made where the backward pass of one forward pass comes after another one.
    """

    def __init__(self, trace: Trace, input_gradient: bool, backward: bool):
        self._arguments = trace.operations, input_gradient, backward
        self._idle: list[Program] = []
        first, last = trace.operations[0].shape, trace.operations[-1].shape
        statistics = [
            tuple(tensor.shape)
            for norm in trace.norms
            for tensor in (norm.running_mean, norm.running_var)
        ]
        parameters = [tuple(parameter.shape) for parameter in trace.parameters]
        self.results = memory.Pool([last, *statistics])
        self.gradients = memory.Pool([first, *parameters] if input_gradient else parameters)

    def take(self) -> Program:
        """Return a program that is not in use."""
        return self._idle.pop() if self._idle else Program(Writer(*self._arguments))

    def release(self, program: Program) -> None:
        """Take back a program, to be used again unless there are others already."""
        if len(self._idle) < _KEPT:
            self._idle.append(program)


# model -> its most recently used ones
_compiled: WeakKeyDictionary[M.Module, OrderedDict[tuple, Compiled]] = WeakKeyDictionary()


class _Map(Function):
    """The map of a network: (images, parameters) -> map."""

    def __init__(self, compiled: Compiled, norms: list[M.Module], input_gradient: bool):
        super().__init__()
        self.compiled, self.norms, self.input_gradient = compiled, norms, input_gradient
        self.program: Program | None = None

    def forward(self, x: mge.Tensor, *parameters: mge.Tensor) -> mge.Tensor:
        statistics = [
            tensor for norm in self.norms for tensor in (norm.running_mean, norm.running_var)
        ]
        # the memory of the inputs is read in the backward pass too
        addresses, self.owners = memory.addresses_of((x, *parameters, *statistics))
        memory.settle()
        self.program = program = self.compiled.take()
        end = 1 + len(parameters)
        program.set("input", addresses[:1])
        program.set("parameters", addresses[1:end])
        program.set("statistics", addresses[end:])
        settings = [bits(value) for norm in self.norms for value in (norm.eps, norm.momentum)]
        program.set("settings", settings)
        block = self.compiled.results.take()
        program.set("output", block.addresses[:1])
        program.set("new_statistics", block.addresses[1:])
        program.forward()
        output, *new_statistics = block.tensors()
        for tensor, new in zip(statistics, new_statistics, strict=True):
            tensor._reset(new)
        return output

    def backward(self, gradient: mge.Tensor) -> tuple[mge.Tensor | None, ...]:
        addresses, owners = memory.addresses_of([gradient])
        memory.settle()
        program, self.program = self.program, None
        if program is None:
            raise RuntimeError("the gradients of a forward pass can be computed once")
        program.set("output_gradient", addresses)
        block = self.compiled.gradients.take()
        of_input = int(self.input_gradient)
        program.set("input_gradient", block.addresses[:of_input])
        program.set("parameter_gradients", block.addresses[of_input:])
        program.backward()
        self.compiled.release(program)
        del self.owners, owners
        tensors = block.tensors()
        return tuple(tensors) if self.input_gradient else (None, *tensors)

    def __del__(self) -> None:
        if self.program is not None:  # there was no backward pass
            self.compiled.release(self.program)


def trace(function: Callable[[Any], Any], shape: tuple[int, int, int, int]) -> Trace:
    """Record what `function` computes for images of a shape; it returns one map.

    Raises symbol.Untraceable when it does what no program can.
    """
    recorded = Trace(shape)
    depth = len(AutoNaming.scopes)
    try:
        with _plain_modules():
            output = function(recorded.input)
    except Untraceable:
        raise
    except Exception as error:  # such as MegEngine's own, of a function that got a symbol
        raise Untraceable(f"a network does not take a symbol: {error}") from error
    finally:
        while len(AutoNaming.scopes) > depth:  # of modules that an exception has left
            AutoNaming.pop_scope()
    if not isinstance(output, Symbol):
        raise Untraceable("a network does not return one map")
    used = {number for operation in recorded.operations for number in operation.inputs}
    if not {*used, output.number}.issuperset(range(1, len(recorded.operations))):
        raise Untraceable("the result of an operation is not used")
    return recorded


@contextmanager
def _plain_modules() -> Iterator[None]:
    """Refuse to call modules that do more than their forward pass says."""
    call = M.Module.__call__

    def checked(module: M.Module, *inputs: Any, **named: Any) -> Any:
        if module._forward_hooks or module._forward_pre_hooks:
            raise Untraceable("a module has hooks")
        if isinstance(module, M.qat.QATModule):
            raise Untraceable("a module simulates quantization")
        return call(module, *inputs, **named)

    M.Module.__call__ = checked
    try:
        yield
    finally:
        M.Module.__call__ = call


def run(model: M.Module, trace: Trace, x: mge.Tensor) -> mge.Tensor:
    """Return the map that a trace of a model returns for images.

    It can be differentiated if the model is in training mode.
    """
    input_gradient = model.training and get_grad_key((x,)) is not None
    key = tuple(trace.operations), input_gradient, model.training
    recent = _compiled.setdefault(model, OrderedDict())
    compiled = recent.pop(key, None) or Compiled(trace, input_gradient, model.training)
    recent[key] = compiled
    if len(recent) > _KEPT:
        recent.popitem(last=False)
    function = _Map(compiled, trace.norms, input_gradient)
    if not model.training:
        return function.forward(x, *trace.parameters)
    return function(x, *trace.parameters)
