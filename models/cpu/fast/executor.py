"""The loop that runs a program: one compiled call for a whole forward or backward pass."""

from __future__ import annotations

from enum import IntEnum

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from . import (
    depthwise_kernels,
    map_kernels,
    matrix_kernels,
    merged_kernels,
    norm_kernels,
    winograd_kernels,
)
from .compiled import OPTIONS


class Code(IntEnum):
    """Instructions; a record is one of them with its arguments, int64 [WIDTH]."""

    EXECUTE = 0  # primitive, number of arguments, address of the arguments
    HANDLE = 1  # oneDNN's memory, address
    STATISTICS = 2
    COEFFICIENTS = 3
    COMBINE = 4
    GRADIENT_SUMS = 5
    GRADIENT_INPUTS = 6
    ADD = 7
    COPY = 8
    POOL = 9
    POOL_GRADIENT = 10
    SCALE = 11
    SCALE_GRADIENT = 12
    BROADCAST = 13
    SUM_ROWS = 14
    REPEAT = 15
    REPEAT_GRADIENT = 16
    DEPTHWISE = 17
    DEPTHWISE_DATA = 18
    DEPTHWISE_WEIGHTS = 19
    PATCHES = 20
    TO_TILES = 21
    FROM_TILES = 22
    CENTER = 23
    BRANCH_STATISTICS = 24
    MERGE = 25
    CENTERED_GRADIENT = 26
    BRANCH_GRADIENTS = 27
    NEGATIVE_PRODUCT = 28
    NORMALIZE = 29
    SCALE_AND_SHIFT = 30


WIDTH = 14


@intrinsic
def _call(typingctx, function, a, b, c, d):
    """Call a C function int f(void *a, void *b, int c, void *d) by its address."""

    def codegen(context, builder, signature, arguments):
        function, a, b, c, d = arguments
        i64, i32 = ir.IntType(64), ir.IntType(32)
        pointer = ir.FunctionType(i32, [i64, i64, i32, i64]).as_pointer()
        status = builder.call(builder.inttoptr(function, pointer), [a, b, builder.trunc(c, i32), d])
        return builder.sext(status, i64)

    return types.int64(*[types.int64] * 5), codegen


@intrinsic
def _float(typingctx, bits):
    """Return the float32 whose bits are the lower half of an int64."""

    def codegen(context, builder, signature, arguments):
        return builder.bitcast(builder.trunc(arguments[0], ir.IntType(32)), ir.FloatType())

    return types.float32(types.int64), codegen


def bits(value: float) -> int:
    """Return a float32's bits, as an argument of an instruction."""
    return int(np.float32(value).view(np.int32)) & 0xFFFFFFFF


@njit("int64(int64[:, ::1], int64[::1], int64, int64, int64)", **OPTIONS)
def run(records, slots, execute, set_handle, stream):
    """Run all records in order, and return the number of those that failed.

    A negative argument is the address in slot -argument - 1. `execute` and `set_handle` are the
    addresses of dnnl_primitive_execute and dnnl_memory_set_data_handle.
    """
    failures = 0
    a = np.empty(records.shape[1], np.int64)
    for i in range(len(records)):
        for j in range(records.shape[1]):
            v = records[i, j]
            a[j] = v if v >= 0 else slots[-v - 1]
        code = a[0]
        if code == Code.EXECUTE:
            failures += _call(execute, a[1], stream, a[2], a[3]) != 0
        elif code == Code.HANDLE:
            failures += _call(set_handle, a[1], a[2], 0, 0) != 0
        elif code == Code.STATISTICS:
            norm_kernels.statistics(a[1], a[2], a[3], a[4])
        elif code == Code.COEFFICIENTS:
            norm_kernels.coefficients(
                a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], _float(a[10]), _float(a[11]),
                a[12],
            )  # fmt: skip
        elif code == Code.COMBINE:
            norm_kernels.combine(a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9])
        elif code == Code.GRADIENT_SUMS:
            norm_kernels.gradient_sums(a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10])
        elif code == Code.GRADIENT_INPUTS:
            norm_kernels.gradient_inputs(
                a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]
            )
        elif code == Code.ADD:
            map_kernels.add(a[1], a[2], a[3], a[4])
        elif code == Code.COPY:
            map_kernels.copy(a[1], a[2], a[3])
        elif code == Code.POOL:
            map_kernels.pool(a[1], a[2], a[3], a[4], a[5])
        elif code == Code.POOL_GRADIENT:
            map_kernels.pool_gradient(a[1], a[2], a[3], a[4], a[5])
        elif code == Code.SCALE:
            map_kernels.scale(a[1], a[2], a[3], a[4], a[5], a[6])
        elif code == Code.SCALE_GRADIENT:
            map_kernels.scale_gradient(a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8])
        elif code == Code.BROADCAST:
            map_kernels.broadcast(a[1], a[2], a[3], a[4])
        elif code == Code.SUM_ROWS:
            map_kernels.sum_rows(a[1], a[2], a[3], a[4])
        elif code == Code.REPEAT:
            depthwise_kernels.repeat(a[1], a[2], a[3], a[4], a[5])
        elif code == Code.REPEAT_GRADIENT:
            depthwise_kernels.repeat_gradient(a[1], a[2], a[3], a[4], a[5])
        elif code == Code.DEPTHWISE:
            depthwise_kernels.forward(a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10])
        elif code == Code.DEPTHWISE_DATA:
            depthwise_kernels.data_gradient(
                a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10]
            )
        elif code == Code.PATCHES:
            map_kernels.patches(a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9])
        elif code == Code.TO_TILES:
            winograd_kernels.to_tiles(a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9])
        elif code == Code.FROM_TILES:
            winograd_kernels.from_tiles(a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9])
        elif code == Code.DEPTHWISE_WEIGHTS:
            depthwise_kernels.weight_gradient(
                a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10]
            )
        elif code == Code.CENTER:
            merged_kernels.center(a[1], a[2], a[3], a[4], a[5])
        elif code == Code.BRANCH_STATISTICS:
            merged_kernels.branch_statistics(a[1], a[2], a[3], a[4], a[5], a[6], a[7])
        elif code == Code.MERGE:
            merged_kernels.merge(a[1], a[2], a[3], a[4], a[5], a[6], a[7])
        elif code == Code.CENTERED_GRADIENT:
            merged_kernels.centered_gradient(a[1], a[2], a[3], a[4], a[5], a[6], a[7])
        elif code == Code.BRANCH_GRADIENTS:
            merged_kernels.branch_gradients(
                a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11]
            )
        elif code == Code.NEGATIVE_PRODUCT:
            merged_kernels.negative_product(a[1], a[2], a[3], a[4])
        elif code == Code.NORMALIZE:
            matrix_kernels.normalize(a[1], a[2], a[3])
        elif code == Code.SCALE_AND_SHIFT:
            matrix_kernels.scale_and_shift(a[1], a[2], a[3], _float(a[4]), _float(a[5]), a[6])
        else:
            failures += 1
    return failures
