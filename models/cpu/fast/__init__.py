"""Training as compiled programs: one for a network's forward pass, one for its gradients.

symbol.py in the folder above records what a network computes. fuse.py joins the branches of a
block, and merging.py finds those that one convolution can compute. writer.py, convolution.py,
norm_sum.py and merged_sum.py write this down as instructions (records.py), slots.py numbers the
memory outside, and places.py lays out the memory inside. program.py encodes it and has executor.py
run it in one compiled call: convolutions and activations by oneDNN (onednn_layers.py on onednn.py,
its C interface), wide 3x3 convolutions as products of transformed tiles (winograd.py), the rest by
loops that numba compiles (norm_kernels.py, merged_kernels.py, map_kernels.py, depthwise_kernels.py,
winograd_kernels.py; compiled.py is what these share). cache.py keeps programs, and network.py
makes them a function that MegEngine can differentiate, on memory shared with it (memory.py).
momentum.py and adamw.py update the parameters (tensor_updates.py is what these share), and
newton_schulz.py computes Muon's updates by such a program.
"""

import contextlib

from . import libraries

with contextlib.suppress(libraries.NotAvailable):  # `available` says it
    libraries.configure_numba()

from .libraries import versions
from .rules import (
    available,
    has_bfloat16,
    orthogonal,
    traced,
    update_by_adamw,
    update_by_momentum,
)

__all__ = ["available", "has_bfloat16", "orthogonal", "traced", "update_by_adamw",
           "update_by_momentum", "versions"]  # fmt: skip
