"""Symbols that a network is called with to find out what it computes.

A network's own forward pass, called with a `Symbol` instead of a tensor, records its operations:
layers.py hands convolutions, batch norms, activations and pooling to the symbol, and sums,
differences and products are written with +, - and *. Whatever else a network does with a symbol
raises an error, and the network is then computed by MegEngine's operators.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any, NamedTuple

import megengine.module as M
import numpy as np
from megengine import Tensor
from megengine.utils.naming import AutoNaming

from .matmul import SMALL_KERNEL

_FLOAT32 = np.dtype(np.float32)
_NUMBER = (float, Real)  # the first is found faster


class Untraceable(Exception):
    """A network does something that a symbol cannot record; the message says what."""


class Operation(NamedTuple):
    """An operation on the results of earlier ones, which are given by their numbers.

    `shape` is that of the result, [N, C, H, W]; `settings` is whatever decides what is computed
    beside the tensors.
    """

    kind: str
    inputs: tuple[int, ...]
    shape: tuple[int, int, int, int]
    settings: tuple = ()


class Trace:
    """What a network computes.

    Attributes:
        operations: all operations; the first is the input.
        parameters: weights and biases, in the order in which operations take them.
        norms: modules whose running statistics are updated, in the same order.
    """

    def __init__(self, shape: tuple[int, int, int, int]):
        self.operations = [Operation("input", (), shape)]
        self.parameters: list[Tensor] = []
        self.norms: list[M.Module] = []
        self._used: set[int] = set()

    @property
    def input(self) -> Symbol:
        """The symbol to call the network with."""
        return Symbol(self, 0)

    def record(
        self, kind: str, inputs: tuple[Symbol, ...], shape: tuple, settings: tuple = ()
    ) -> Symbol:
        self.operations.append(Operation(kind, tuple(s.number for s in inputs), shape, settings))
        return Symbol(self, len(self.operations) - 1)

    def use(self, parameter: Tensor, shape: tuple[int, ...]) -> None:
        """Add a parameter. Raises Untraceable for one of another shape, or that was used before."""
        _check(parameter, shape)
        if id(parameter) in self._used:
            raise Untraceable("a parameter is used twice")
        self._used.add(id(parameter))
        self.parameters.append(parameter)

    def factors(self, parameter: Tensor, images: int) -> Symbol:
        """Record a parameter [C, 1, 1] as one factor for each channel of each image."""
        channels = parameter.shape[0]
        self.use(parameter, (channels, 1, 1))
        return self.record("factors", (), (images, channels, 1, 1))


def _check(tensor: Tensor, shape: tuple[int, ...]) -> None:
    """Raise Untraceable for a tensor whose memory compiled code would take for something else."""
    if tensor.dtype is not _FLOAT32 or tensor.shape != shape:
        raise Untraceable(
            f"a parameter is {tensor.dtype} {tensor.shape}, but float32 {shape} was expected"
        )


class Symbol:
    """The result of an operation of a trace, in the place of a tensor [N, C, H, W]."""

    def __init__(self, trace: Trace, number: int):
        self.trace, self.number = trace, number

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of the tensor, [N, C, H, W]."""
        return self.trace.operations[self.number].shape

    def convolution(self, module: M.Conv2d, weight: Tensor, bias: Tensor | None) -> Symbol:
        """Record a convolution as a module does it with a weight, and a bias or None."""
        (kernel, kernel_w), (stride, stride_w) = module.kernel_size, module.stride
        (padding, padding_w), dilation = module.padding, tuple(module.dilation)
        if (kernel, stride, padding) != (kernel_w, stride_w, padding_w) or dilation != (1, 1):
            raise Untraceable("a convolution is not square, or dilated")
        if module.padding_mode != "zeros":
            raise Untraceable(f"a convolution pads by {module.padding_mode!r}")
        if module.conv_mode != "cross_correlation":
            raise Untraceable(f"a convolution is a {module.conv_mode}")
        if kernel > SMALL_KERNEL:
            raise Untraceable(
                f"a kernel is {kernel}x{kernel}, for which matmul/large_kernel.py is made"
            )
        self._check_channels(module.in_channels)
        self.trace.use(weight, module._infer_weight_shape())
        if weight.format != "default":  # the other parameters have one axis alone
            raise Untraceable(f"the layout of a weight is {weight.format}")
        if bias is not None:
            self.trace.use(bias, (1, module.out_channels, 1, 1))
        n, _, h, w = self.shape
        shape = (
            n,
            module.out_channels,
            (h + 2 * padding - kernel) // stride + 1,
            (w + 2 * padding - kernel) // stride + 1,
        )
        if min(shape) < 1:
            raise Untraceable(f"a convolution's map is {shape}")
        settings = (kernel, stride, padding, module.groups, bias is not None)
        return self.trace.record("convolution", (self,), shape, settings)

    def batch_norm(self, module: M.Module) -> Symbol:
        """Record a batch norm in training mode."""
        if not module.training or module.freeze or module.all_reduce is not None:
            raise Untraceable("a batch norm does not use the statistics of this batch alone")
        if not (module.affine and module.track_running_stats):
            raise Untraceable("a batch norm has no parameters or no statistics")
        if not (isinstance(module.eps, _NUMBER) and isinstance(module.momentum, _NUMBER)):
            raise Untraceable("eps or momentum of a batch norm is no number")
        self._check_channels(module.num_features)
        shape = (1, module.num_features, 1, 1)
        for parameter in (module.weight, module.bias):
            self.trace.use(parameter, shape)
        for statistic in (module.running_mean, module.running_var):
            _check(statistic, shape)
        self.trace.norms.append(module)
        return self.trace.record("norm", (self,), self.shape)

    def _check_channels(self, expected: int) -> None:
        # compiled code reads as many numbers of a parameter as the map's channels ask for
        if self.shape[0] == 0:
            raise Untraceable("there are no images")
        if self.shape[1] != expected:
            raise Untraceable(f"a map is {self.shape}, but {expected} channels were expected")

    def activation(self, kind: str) -> Symbol:
        """Record "relu", "gelu", "sigmoid", "hard_sigmoid" or "negative"."""
        return self.trace.record(kind, (self,), self.shape)

    def mean_over_map(self) -> Symbol:
        """Record the mean over the map, [N, C, 1, 1]; `mean` of a tensor is another."""
        return self.trace.record("pool", (self,), (*self.shape[:2], 1, 1))

    def __add__(self, other: Any) -> Symbol:
        if not isinstance(other, Symbol) or other.shape != self.shape:
            raise Untraceable("a sum is not of two maps of one shape")
        return self.trace.record("sum", (self, other), self.shape)

    def _in_place(self, other: Any) -> Symbol:
        raise Untraceable("a map is changed in place")

    __iadd__ = __isub__ = __imul__ = _in_place

    def __neg__(self) -> Symbol:
        return self.activation("negative")

    def __sub__(self, other: Any) -> Symbol:
        if not isinstance(other, Symbol):
            raise Untraceable("a difference is not of two maps")
        return self + -other

    def __mul__(self, other: Any) -> Symbol:
        if isinstance(other, Tensor) and tuple(other.shape) == (self.shape[1], 1, 1):
            other = self.trace.factors(other, self.shape[0])
        if not isinstance(other, Symbol) or other.shape != (*self.shape[:2], 1, 1):
            raise Untraceable("a product is not of a map and a gate for each channel")
        return self.trace.record("scale", (self, other), self.shape)

    def __getattr__(self, name: str) -> Any:
        raise Untraceable(f"a network asks for {name} of its map")


def trace(function: Callable[[Any], Any], shape: tuple[int, int, int, int]) -> Trace:
    """Record what `function` computes for images of a shape; it returns one map.

    Raises Untraceable when it does what no program can.
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


_tracing = threading.RLock()  # one thread at a time changes how modules are called


@contextmanager
def _plain_modules() -> Iterator[None]:
    """Refuse to call modules that do more than their forward pass says, in this thread."""
    with _tracing:
        thread, call = threading.get_ident(), M.Module.__call__

        def checked(module: M.Module, *inputs: Any, **named: Any) -> Any:
            if threading.get_ident() != thread:
                return call(module, *inputs, **named)
            if module._forward_hooks or module._forward_pre_hooks:
                raise Untraceable("a module has hooks")
            if M.qat.QATModule in type(module).__mro__:  # isinstance takes longer
                raise Untraceable("a module simulates quantization")
            return call(module, *inputs, **named)

        M.Module.__call__ = checked
        try:
            yield
        finally:
            M.Module.__call__ = call
