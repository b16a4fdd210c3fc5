"""What each runtime expects of an int8 file, as data.

The rules of TensorRT are those of its documentation on explicit quantization and of its parser
onnx-tensorrt 10.1; the rules of Rockchip's are what RKNN-Toolkit2 2.5.0 was seen to load.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Grid:
    """The integers that stand for the values of an activation.

    Attributes:
        dtype: type of the integers.
        lowest, highest: range of the integers, to which QuantizeLinear clips.
        symmetric: whether the zero point is always 0, so that only the larger side of a range
            counts; otherwise the whole range is covered.
    """

    dtype: type[np.integer]
    lowest: int
    highest: int
    symmetric: bool

    def scale_and_zero(self, low: float, high: float) -> tuple[np.float32, np.integer]:
        """Return scale and zero point of activations from `low` to `high`, extended to include 0.

        scale = (high - low) / (highest - lowest), or max(-low, high) / highest if symmetric, in
        float64, rounded to float32 (1 for an empty range), and zero = rint(lowest - low / scale) in
        float64. ONNX quantizes x to q = clip(rint(x / scale) + zero, lowest, highest), rounding
        half to even, and dequantizes q to (q - zero) * scale.
        """
        low, high = min(float(low), 0.0), max(float(high), 0.0)
        if self.symmetric:
            scale = np.float32(max(-low, high) / self.highest)
        else:
            scale = np.float32((high - low) / (self.highest - self.lowest))
        if not scale > np.finfo(np.float32).tiny:
            return np.float32(1), self.dtype(0)
        if self.symmetric:
            return scale, self.dtype(0)
        zero = np.rint(self.lowest - low / float(scale))
        return scale, self.dtype(np.clip(zero, self.lowest, self.highest))

    def limits(self, zero: np.integer) -> tuple[float, float]:
        """Return the lowest and the highest value, in steps."""
        return float(self.lowest) - float(zero), float(self.highest) - float(zero)


UINT8 = Grid(np.uint8, 0, 255, symmetric=False)
SYMMETRIC_INT8 = Grid(np.int8, -128, 127, symmetric=True)


@dataclass(frozen=True)
class Dialect:
    """How an int8 file is written for one runtime.

    Attributes:
        runtime: name of the runtime, for messages.
        opsets: versions of ONNX's operator set that the runtime reads.
        grid: integers of the activations.
        int32_biases: whether biases are int32 behind DequantizeLinear; otherwise they stay float.
        saturates: whether there are processors on which the runtime adds two products in 16 bits,
            so that weights are limited unless --full-range is given, see `weights`.
        behind_layers: whether the output of each convolution (or of the ReLU behind it) has a pair.
        skip_alone: whether, in the addition of a shortcut, only the operand that does not come from
            the convolution computed last has a pair, so that the runtime can compute convolution,
            addition and ReLU in one kernel; otherwise both operands and the sum have one.
        before_pools: whether the input of a global average pooling has a pair.
        before_flatten: whether a pair stands in front of a Flatten instead of behind it.
        whole: what, if it reads int8, has to be followed by a pair, so that otherwise it reads its
            inputs as they are: "nothing"; "pools", by one right behind a global average pooling;
            or "operators", those and, behind it or what follows, every operator without weights.
        batch: batch size of the file; None for any.
    """

    runtime: str
    opsets: range
    grid: Grid = UINT8
    int32_biases: bool = True
    saturates: bool = False
    behind_layers: bool = True
    skip_alone: bool = False
    before_pools: bool = False
    before_flatten: bool = False
    whole: Literal["nothing", "pools", "operators"] = "nothing"
    batch: int | None = None


_ONNXRUNTIME = Dialect("onnxruntime", range(13, 24), saturates=True)
DIALECTS = {  # value of quantize.py --target
    "onnxruntime": _ONNXRUNTIME,
    "openvino": _ONNXRUNTIME,
    "tensorrt": Dialect(
        "TensorRT",
        range(13, 21),
        SYMMETRIC_INT8,
        int32_biases=False,
        behind_layers=False,
        skip_alone=True,
        before_pools=True,
        before_flatten=True,
        whole="operators",
    ),
    "rknn": Dialect("RKNN-Toolkit2", range(13, 20), before_flatten=True, whole="pools", batch=1),
}


@dataclass(frozen=True)
class Scheme:
    """What of a network is quantized, and how.

    Attributes:
        per_channel: whether each output channel's weights have a scale of their own; otherwise
            there is one scale per layer.
        limited: whether to limit the weights so that no CPU's kernels saturate, see `weights`.
        dialect: how the file is written.
        in_float: names of the layers whose weights and input stay float.
    """

    per_channel: bool = True
    limited: bool = True
    dialect: Dialect = _ONNXRUNTIME
    in_float: frozenset[str] = field(default=frozenset())
