"""What the compiled loops share: memory by its address, options of the compiler, constants.

The loops take float32 matrices [rows, channels] by address, whose rows are all positions of all
images. They divide their work into chunks whatever the number of threads, so that sums have the
same bits.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit, types
from numba.extending import intrinsic

# Its threads must be there before compiled code is read. Code that was compiled after a first
# attempt was interrupted, when the loops that it calls were read, does not see to it itself.
numba.get_num_threads()


@intrinsic
def floats(typingctx, address):
    """Return the pointer to float32 values at an address, an int64."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.float32)(address), codegen


@intrinsic
def integers(typingctx, address):
    """Return the pointer to int64 values at an address, an int64."""

    def codegen(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(types.int64)(address), codegen


# No reassociation: sums have one order. Products and sums may be contracted, zeros lose their sign.
OPTIONS: Any = {
    "cache": True,
    "nogil": True,
    "boundscheck": False,
    "error_model": "numpy",
    "fastmath": {"contract", "nsz", "arcp"},
}
ONE = np.float32(1)
ZERO = np.float32(0)


@njit(**OPTIONS)
def outputs(size, k, stride, padding):
    """Return how many positions a kernel of size k has along an axis of a map."""
    return (size + 2 * padding - k) // stride + 1
