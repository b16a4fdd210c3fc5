"""Quantization-aware training: a network learns with the rounding of its int8 form.

What is trained is the deploy form, operator by operator as deployment/int8/qdq.py writes it, its
weights being functions of the branches, so that the branches learn (RepQ, BMVC 2023,
arXiv 2311.05317). Batch norms keep their statistics. Rounding passes gradients on as they are, and
so do activations within their range; the ranges are moving averages of what the batches had
(Jacob et al., Quantization and Training of Neural Networks, CVPR 2018).
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import models
from models import cpu, reparam
from models.layers import relu

import megengine as mge
import megengine.functional as F
import megengine.module as M
import numpy as np
from megengine.autodiff import Function
from megengine.core._imperative_rt.core2 import apply
from megengine.core.ops.builtin import Elemwise, Reduce
from onnx import NodeProto, helper, numpy_helper

from deployment.int8 import dialects, graph, qdq, weights
from deployment.onnx_graph import to_onnx
from utils import UserError

from .distributed.process_group import Workers

Ranges = dict[str, tuple[float, float]]  # tensor of the ONNX graph -> lowest and highest value

MOMENTUM = 0.99  # weight of the old ranges at each step


class FakeQuantized(M.Module):
    """The int8 form of a network, computed in float: images [N, C, H, W] -> logits [N, classes].

    The parameters are those of `model`. In training mode it also notes the ranges of the
    activations, for `observe`.

    Attributes:
        ranges: ranges of the activations; activations without one are not rounded. As plain data
            they go into checkpoints and quantize.py.

    Args:
        model: made by `models.create`, in either form.
        ranges: ranges to start from.
    """

    def __init__(self, model: M.Module, ranges: Mapping[str, tuple[float, float]] | None = None):
        super().__init__()
        self.model, self.ranges = model, dict(ranges or {})
        deployed = models.to_deploy(model)
        deployed.eval()
        onnx = to_onnx(deployed, (64, 64), 13, 1, "input", "logits")  # of any size
        self._activations = set(qdq.activations(onnx))
        schemes = [dialects.Scheme(dialect=dialect) for dialect in dialects.DIALECTS.values()]
        # some runtimes need the ranges of further tensors, which training does not round
        self._noted = {name for scheme in schemes for name in qdq.activations(onnx, scheme)}
        self._nodes = [_Node(node) for node in onnx.graph.node]
        self._seen: list[dict[str, list[mge.Tensor]]] = []
        self._weights: dict[str, mge.Tensor] | None = None  # in evaluation

    def train(self, mode: bool = True, recursive: bool = True) -> None:
        """Set training or evaluation mode, and discard the weights rounded for evaluation."""
        super().train(mode, recursive)
        self._weights = None  # may since have changed

    def forward(self, images: mge.Tensor) -> mge.Tensor:
        tensors = self._fake_quantized_weights()
        tensors["input"] = self._activation("input", images)
        for node in self._nodes:
            if node.bias in tensors and node.inputs[0] in self.ranges:
                step = float(dialects.UINT8.scale_and_zero(*self.ranges[node.inputs[0]])[0])
                scale = step * tensors[f"{node.inputs[1]}.scale"]
                tensors[node.bias] = fake_quantize_bias(tensors[node.bias], scale)
            result = node(tensors)
            tensors[node.output] = self._activation(node.output, result)
        return tensors["logits"]

    def observe(self, workers: Workers) -> None:
        """Move the ranges towards what all workers have seen in training mode since the last call.

        An activation without a range gets just the one that was seen.
        """
        names = sorted(self._noted)
        bounds = [[float(b.numpy()) for n in names for b in seen[n]] for seen in self._seen]
        self._seen = []
        means = np.mean(bounds, axis=0) if bounds else np.zeros(2 * len(names))
        has_seen, *observed = workers.gather([len(bounds) > 0, *means]).T
        if not has_seen.any():  # all images of this step were left out
            return
        observed = np.average(observed, axis=1, weights=has_seen).reshape(-1, 2)
        for name, new in zip(names, observed, strict=True):
            old = np.array(self.ranges.get(name, new))
            self.ranges[name] = tuple((MOMENTUM * old + (1 - MOMENTUM) * new).tolist())

    def calibrate(self, batches: Iterable[np.ndarray], workers: Workers) -> None:
        """Set the ranges to the mean of those that batches of images [N, C, H, W] give.

        Raises UserError where no worker has any image.
        """
        self.ranges = {}
        training = self.training
        self.train()
        for images in batches:
            self(mge.Tensor(images))
        self.train(training)
        self.observe(workers)
        if not self.ranges:
            raise UserError(
                "none of the first images could be read, so the activations have no ranges; leave "
                "out --skip-bad-images to see the name of the first of them"
            )

    def _fake_quantized_weights(self) -> dict[str, mge.Tensor]:
        """Return every parameter of the deploy form by name, kernels and matrices rounded to int8,
        and the scales of these as NAME.scale [O]."""
        if self._weights is None:
            fused = reparam.fused_weights(self.model)
            layers = {name for node in self._nodes for name in node.rounded}
            for name in layers:
                fused[name], fused[f"{name}.scale"] = fake_quantize_weights(fused[name])
            if self.training:
                return fused
            self._weights = {name: tensor.detach() for name, tensor in fused.items()}
        return dict(self._weights)

    def _activation(self, name: str, x: mge.Tensor) -> mge.Tensor:
        if self.training and name in self._noted:
            if not self._seen or name in self._seen[-1]:
                self._seen.append({})
            self._seen[-1][name] = [_reduce(x.detach(), mode) for mode in ("min", "max")]
        is_rounded = name in self._activations and name in self.ranges
        return fake_quantize(x, *self.ranges[name]) if is_rounded else x


# ---------------------------------------------------------------- rounding


class _Round(Function):
    """Rounding to whole numbers below 2^22, half to even, with the gradient of the identity."""

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        # float32 has no room for fractions beside 1.5 * 2^23; F.round takes halves away from zero
        magic = mge.Tensor(1.5 * 2**23, dtype="float32")
        return (x + magic) - magic

    def backward(self, dy: mge.Tensor) -> mge.Tensor:
        return dy


def fake_quantize(x: mge.Tensor, low: float, high: float) -> mge.Tensor:
    """Round activations as in uint8: (clip(rint(x / scale) + zero, 0, 255) - zero) * scale.

    Scale and zero are those of the int8 network, see `Grid.scale_and_zero`. The gradient is that of
    clipping alone.
    """
    grid = dialects.UINT8
    scale, zero = grid.scale_and_zero(low, high)
    lowest, highest = grid.limits(zero)
    steps = F.minimum(F.maximum(x / float(scale), lowest), highest)
    return _Round()(steps) * float(scale)


def fake_quantize_weights(weight: mge.Tensor) -> tuple[mge.Tensor, mge.Tensor]:
    """Return a kernel or matrix rounded as in int8, and the scales [O] of its output channels.

    The gradient is that of the identity.
    """
    channels = weight.shape[: 2 if weight.ndim == 5 else 1]  # grouped: [G, O/G, I/G, kh, kw]
    flat = weight.numpy().reshape(int(np.prod(channels)), -1)
    shape = (*channels, *(1,) * (weight.ndim - len(channels)))
    scales = mge.Tensor(weights.scales(flat))
    scale = scales.reshape(shape)
    return _Round()(weight / scale) * scale, scales


def fake_quantize_bias(bias: mge.Tensor, scale: mge.Tensor) -> mge.Tensor:
    """Round a bias as in int32, to steps of `scale` [O], with the gradient of the identity."""
    scale = scale.reshape(bias.shape)
    return bias + (F.round(bias.detach() / scale) * scale - bias.detach())


def _reduce(x: mge.Tensor, mode: str) -> mge.Tensor:
    """Return the "min" or "max" of all numbers, innermost axis first, which is fast on a CPU."""
    for axis in reversed(range(x.ndim)):
        x = apply(Reduce(mode=mode, axis=axis), x)[0]
    return x.reshape(-1)[0]


# ---------------------------------------------------------------- operators of the ONNX graph


class _Node:
    """An operator of the graph as MegEngine computes it: a function of all tensors so far."""

    def __init__(self, node: NodeProto):
        self.inputs, (self.output,) = list(node.input), node.output
        self.attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        self.compute = _OPERATORS[node.op_type]
        # names of the weights to be rounded to int8, and of the bias that goes with them
        is_layer = node.op_type in graph.LAYERS
        self.rounded = self.inputs[1:2] if is_layer else []
        self.bias = self.inputs[2] if is_layer and len(self.inputs) > 2 else None

    def __call__(self, tensors: Mapping[str, mge.Tensor]) -> mge.Tensor:
        return self.compute(*(tensors[name] for name in self.inputs), **self.attributes)


def _conv(
    x: mge.Tensor,
    weight: mge.Tensor,
    bias: mge.Tensor,
    *,
    strides: Sequence[int],
    pads: Sequence[int],
    group: int,
    **_: Any,
) -> mge.Tensor:
    stride, padding = (strides[0], strides[1]), (pads[0], pads[1])
    if cpu.is_used():
        return cpu.add_bias(cpu.conv2d(x, weight, stride, padding, group), bias)
    return F.conv2d(x, weight, bias, stride, padding, 1, group)


def _erf(x: mge.Tensor) -> mge.Tensor:
    return apply(Elemwise(mode=Elemwise.Mode.ERF), x)[0]


_OPERATORS: dict[str, Callable[..., mge.Tensor]] = {
    "Add": operator.add,
    "Constant": lambda value: mge.Tensor(numpy_helper.to_array(value)),
    "Conv": _conv,
    "Div": operator.truediv,
    "Erf": _erf,
    "Flatten": lambda x, axis: F.flatten(x, axis),
    "Gemm": lambda x, weight, bias, transB: F.linear(x, weight, bias),
    "GlobalAveragePool": lambda x: F.mean(x, axis=(2, 3), keepdims=True),
    "HardSigmoid": lambda x, alpha, beta: F.hsigmoid(x),
    "Mul": operator.mul,
    "Relu": relu,
    "Sigmoid": F.sigmoid,
}
