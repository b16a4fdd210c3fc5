"""A network's map as a differentiable function, computed by a program."""

from __future__ import annotations

import megengine as mge
import megengine.module as M
from megengine.autodiff import Function
from megengine.core._imperative_rt.core2 import get_grad_key

from ..symbol import Trace
from . import libraries, memory
from .cache import Programs, programs_of
from .executor import bits
from .program import Program


class _Map(Function):
    """The map of a network: (images, parameters) -> map."""

    def __init__(self, programs: Programs, norms: list[M.Module], input_gradient: bool):
        super().__init__()
        self.programs, self.norms, self.input_gradient = programs, norms, input_gradient
        self.program: Program | None = None

    def forward(self, x: mge.Tensor, *parameters: mge.Tensor) -> mge.Tensor:
        statistics = [
            tensor for norm in self.norms for tensor in (norm.running_mean, norm.running_var)
        ]
        # the memory of the inputs is read in the backward pass too
        addresses, self.owners = memory.addresses_of((x, *parameters, *statistics))
        memory.settle()
        self.program = program = self.programs.take()
        end = 1 + len(parameters)
        program.set("input", addresses[:1])
        program.set("parameters", addresses[1:end])
        program.set("statistics", addresses[end:])
        settings = [bits(value) for norm in self.norms for value in (norm.eps, norm.momentum)]
        program.set("settings", settings)
        block = self.programs.results.take()
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
        block = self.programs.gradients.take()
        of_input = int(self.input_gradient)
        program.set("input_gradient", block.addresses[:of_input])
        program.set("parameter_gradients", block.addresses[of_input:])
        program.backward()
        self.programs.release(program)
        del self.owners, owners
        tensors = block.tensors()
        return tuple(tensors) if self.input_gradient else (None, *tensors)

    def __del__(self) -> None:
        if self.program is not None:  # there was no backward pass
            self.programs.release(self.program)


def run(model: M.Module, trace: Trace, x: mge.Tensor, bfloat16: bool = False) -> mge.Tensor:
    """Return the map that a trace of a model returns for images.

    It can be differentiated if the model is in training mode. With `bfloat16`, dense convolutions
    are rounded to that where the processor has instructions for it.
    """
    input_gradient = model.training and get_grad_key((x,)) is not None
    bfloat16 = bfloat16 and libraries.has_bfloat16()
    programs = programs_of(model, trace, input_gradient, bfloat16)
    function = _Map(programs, trace.norms, input_gradient)
    if not model.training:
        return function.forward(x, *trace.parameters)
    return function(x, *trace.parameters)
