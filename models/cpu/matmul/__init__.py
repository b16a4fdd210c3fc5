"""Operators with fast gradients on a CPU, built from matrix products and others of MegEngine.

convolution.py chooses how a convolution is computed: itself, by depthwise.py or by large_kernel.py;
elementwise.py has the rest of a network.
"""

from .convolution import SMALL_MAP, conv2d
from .elementwise import add_bias, batch_norm, relu, scale_channels
from .large_kernel import SMALL_KERNEL

__all__ = ["SMALL_KERNEL", "SMALL_MAP", "add_bias", "batch_norm", "conv2d", "relu",
           "scale_channels"]  # fmt: skip
