"""The programs of the networks that were computed last, and the memory of what they return."""

from __future__ import annotations

from collections import OrderedDict
from weakref import WeakKeyDictionary

import megengine.module as M

from ..symbol import Trace
from . import memory
from .program import Program
from .writer import Writer

# a program has memory for all its maps
_TRACES = 2  # of a model, whose programs are kept
_IDLE = 2  # programs of a trace that are kept
_FORGET = 100  # computations of a model after which a trace that none of them was of is dropped


class Programs:
    """Programs for one trace, and the memory of what they return.

    A second program is made where the backward pass of one forward pass comes after another one.

    Attributes:
        unused: number of computations of the model since the last one of this trace.
        results: memory of the map and of the new running statistics.
        gradients: memory of the gradients: that of the input, if it is computed, is the first.
    """

    def __init__(self, trace: Trace, input_gradient: bool, backward: bool, bfloat16: bool):
        self._arguments = trace.operations, input_gradient, backward, bfloat16
        self._idle: list[Program] = []
        self.unused = 0
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
        if self._idle:
            return self._idle.pop()
        written = Writer(*self._arguments)
        return Program(written.records, written.slots.ranges, written.split)

    def release(self, program: Program) -> None:
        """Take back a program, to be used again unless there are others already."""
        if len(self._idle) < _IDLE:
            self._idle.append(program)


_recent: WeakKeyDictionary[M.Module, OrderedDict[tuple, Programs]] = WeakKeyDictionary()


def programs_of(model: M.Module, trace: Trace, input_gradient: bool, bfloat16: bool) -> Programs:
    """Return the programs for a trace of a model, which are kept if it is one of the last."""
    kind = input_gradient, model.training, bfloat16
    key = tuple(trace.operations), *kind
    recent = _recent.setdefault(model, OrderedDict())
    programs = recent.pop(key, None) or Programs(trace, *kind)
    programs.unused = 0
    for other in [*recent]:
        recent[other].unused += 1
        if recent[other].unused > _FORGET:  # as after a change of --size
            del recent[other]
    recent[key] = programs
    if len(recent) > _TRACES:
        recent.popitem(last=False)
    return programs
