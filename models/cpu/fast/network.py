"""A network's maps as one differentiable function, computed by a program."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import megengine as mge
import megengine.module as M
from megengine.autodiff import Function
from megengine.core._imperative_rt.core2 import get_grad_key
from megengine.utils.naming import AutoNaming

from ..symbol import Trace, Untraceable
from . import memory
from .executor import bits
from .program import Program
from .writer import Writer


class Compiled:
    """Programs for one trace, and the memory of what they return.

    A second program is made where the backward pass of one forward pass comes after another one.
    """

    def __init__(self, trace: Trace, outputs: list[int], input_gradient: bool, backward: bool):
        self._arguments = trace.operations, outputs, input_gradient, backward
        self._idle: list[Program] = []
        shapes = [trace.operations[number].shape for number in outputs]
        statistics = [
            tuple(tensor.shape)
            for norm in trace.norms
            for tensor in (norm.running_mean, norm.running_var)
        ]
        parameters = [tuple(parameter.shape) for parameter in trace.parameters]
        inputs = [trace.operations[0].shape] if input_gradient else []
        self.results = memory.Pool([*shapes, *statistics])
        self.gradients = memory.Pool([*inputs, *parameters])

    def take(self) -> Program:
        """Return a program that is not in use."""
        return self._idle.pop() if self._idle else Program(Writer(*self._arguments))

    def release(self, program: Program) -> None:
        """Take back a program."""
        self._idle.append(program)


# model -> its most recently used ones, each of which keeps memory for all maps of a batch
_compiled: WeakKeyDictionary[M.Module, OrderedDict[tuple, Compiled]] = WeakKeyDictionary()
_KEPT = 2


class _Maps(Function):
    """The maps of a network: (images, parameters) -> maps."""

    def __init__(self, compiled: Compiled, trace: Trace, outputs: int, input_gradient: bool):
        super().__init__()
        self.compiled, self.norms = compiled, trace.norms
        self.outputs, self.input_gradient = outputs, input_gradient
        self.program: Program | None = None

    def forward(self, *inputs: mge.Tensor) -> tuple[mge.Tensor, ...]:
        statistics = [
            tensor for norm in self.norms for tensor in (norm.running_mean, norm.running_var)
        ]
        # the memory of the inputs is read in the backward pass too
        addresses, self.owners = memory.addresses_of((*inputs, *statistics))
        memory.settle()
        self.program = program = self.compiled.take()
        slots, ranges = program.slots, program.ranges
        slots[: ranges["statistics"].stop] = addresses
        slots[ranges["settings"]] = [
            bits(value) for norm in self.norms for value in (norm.eps, norm.momentum)
        ]
        block = self.compiled.results.take()
        slots[ranges["outputs"].start : ranges["new_statistics"].stop] = block.addresses
        program.forward()
        tensors = block.tensors()
        for tensor, new in zip(statistics, tensors[self.outputs :], strict=True):
            tensor._reset(new)
        return tuple(tensors[: self.outputs])

    def backward(self, *gradients: mge.Tensor) -> tuple[mge.Tensor | None, ...]:
        addresses, owners = memory.addresses_of(gradients)
        memory.settle()
        program, self.program = self.program, None
        assert program is not None  # MegEngine goes backward once
        slots, ranges = program.slots, program.ranges
        slots[ranges["output_gradients"]] = addresses
        block = self.compiled.gradients.take()
        first = ranges["input_gradient"].start + (not self.input_gradient)
        slots[first:] = block.addresses
        program.backward()
        self.compiled.release(program)
        del self.owners, owners
        tensors = block.tensors()
        return tuple(tensors) if self.input_gradient else (None, *tensors)

    def __del__(self) -> None:
        if self.program is not None:  # there was no backward pass
            self.compiled.release(self.program)


def trace(
    network: Callable[[Any], list], shape: tuple[int, int, int, int]
) -> tuple[Trace, list[int]]:
    """Record what `network` computes for images of a shape, and which operations it returns.

    Raises symbol.Untraceable when it does what no program can.
    """
    recorded = Trace(shape)
    depth = len(AutoNaming.scopes)
    try:
        outputs = [symbol.number for symbol in network(recorded.input)]
    except Untraceable:
        raise
    except Exception as error:  # such as MegEngine's own, of a function that got a symbol
        raise Untraceable(f"a network does not take a symbol: {error}") from error
    finally:
        while len(AutoNaming.scopes) > depth:  # of modules that an exception has left
            AutoNaming.pop_scope()
    return recorded, outputs


def run(model: M.Module, trace: Trace, outputs: list[int], x: mge.Tensor) -> list[mge.Tensor]:
    """Return the maps that a trace of a model returns for images.

    They can be differentiated if the model is in training mode.
    """
    input_gradient = model.training and get_grad_key((x,)) is not None
    key = tuple(trace.operations), tuple(outputs), input_gradient, model.training
    recent = _compiled.setdefault(model, OrderedDict())
    compiled = recent.pop(key, None) or Compiled(trace, outputs, input_gradient, model.training)
    recent[key] = compiled
    if len(recent) > _KEPT:
        recent.popitem(last=False)
    function = _Maps(compiled, trace, len(outputs), input_gradient)
    if not model.training:
        return list(function.forward(x, *trace.parameters))
    return list(function(x, *trace.parameters))
