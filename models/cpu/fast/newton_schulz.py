"""Matrices made orthogonal for Muon, all of an optimizer in one program.

Those of one shape are multiplied together, on all cores, in float32 or in bfloat16, as Jordan does
(see training/muon.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

import megengine as mge

from . import libraries, memory, onednn
from .executor import Code, bits
from .places import Buffer, Part, Slot
from .program import Program
from .records import Records

Shape = tuple[int, int]
Sizes = tuple[int, int, int]  # number of matrices, their rows and columns
Steps = tuple[tuple[float, float, float], ...]

# columns for a row from which on float32, which takes fewer products, is faster than bfloat16
_WIDE = 4.5

# owner -> shapes of its matrices, steps, bfloat16 -> the program and memory for its results
_prepared: WeakKeyDictionary[object, dict[tuple, tuple[Program, memory.Pool]]] = WeakKeyDictionary()


def orthogonal(
    owner: object, matrices: Sequence[mge.Tensor], steps: Steps, bfloat16: bool = False
) -> list[mge.Tensor]:
    """Divide float32 matrices [R, C] by their norms, and return them after Newton-Schulz steps.

    A step with the coefficients a, b, c is x <- (a + b x x' + c (x x')^2) x. With `bfloat16`, the
    factors of products are rounded to that where the processor has instructions for it and that is
    faster. Raises onednn.Error.
    """
    bfloat16 = bfloat16 and libraries.has_bfloat16()
    shapes = tuple((int(rows), int(columns)) for rows, columns in (m.shape for m in matrices))
    programs = _prepared.setdefault(owner, {})
    key = shapes, steps, bfloat16
    if key not in programs:
        programs[key] = _program(*key), memory.Pool(shapes)
    program, pool = programs[key]
    addresses, owners = memory.addresses_of(matrices)
    memory.settle()
    block = pool.take()
    program.set("matrices", addresses)
    program.set("results", block.addresses)
    program.forward()
    del owners
    return block.tensors()


def _program(shapes: Sequence[Shape], steps: Steps, bfloat16: bool) -> Program:
    libraries.set_threads()  # oneDNN divides its work when something is created
    records, count = Records(), len(shapes)
    groups: dict[Shape, list[int]] = {}
    for number, (rows, columns) in enumerate(shapes):
        groups.setdefault((min(rows, columns), max(rows, columns)), []).append(number)
    for (rows, columns), numbers in groups.items():
        size = rows * columns
        x, result = Buffer(len(numbers) * size), Buffer(len(numbers) * size)
        for k, number in enumerate(numbers):
            if shapes[number] == (rows, columns):
                records.emit(Code.COPY, Slot(number), size, Part(x, k * size))
            else:
                records.transpose(Slot(number), Part(x, k * size), 1, columns, rows)
        emit = _emit_steps
        if bfloat16 and columns < _WIDE * rows:
            emit = _emit_rounded_steps
        emit(records, steps, (len(numbers), rows, columns), x, result)
        for k, number in enumerate(numbers):
            target = Slot(count + number)
            if shapes[number] == (rows, columns):
                records.emit(Code.COPY, Part(result, k * size), size, target)
            else:
                records.transpose(Part(result, k * size), target, 1, rows, columns)
    return Program(records, {"matrices": slice(0, count), "results": slice(count, 2 * count)})


def _emit_steps(records: Records, steps: Steps, sizes: Sizes, x: Buffer, result: Buffer) -> None:
    """Write down the steps for `count` matrices of at least as many columns as rows.

    A step is x <- q x with q = a + b g + c g^2 and g = x x'. As q is a polynomial of g, the product
    of all q and the last g are computed without x.
    """
    count, rows, columns = sizes
    squares = onednn.products(count, rows, rows, rows)

    def product(left: Buffer, right: Buffer) -> Buffer:
        target = Buffer(count * rows * rows)
        records.multiply(squares, left, right, target)
        return target

    records.emit(Code.NORMALIZE, x, count, rows * columns)
    gram, total = Buffer(count * rows * rows), None
    x_x = onednn.products(count, rows, columns, rows, transposed="weights")
    records.multiply(x_x, x, x, gram)
    for number, (a, b, c) in enumerate(steps, 1):
        q = product(gram, _linear(records, gram, count, rows, c, b))
        _shift(records, q, count, rows, a)
        total = q if total is None else product(q, total)
        if number < len(steps):
            gram = product(q, product(gram, q))
    assert total is not None
    records.multiply(onednn.products(count, rows, rows, columns), total, x, result)


def _emit_rounded_steps(
    records: Records, steps: Steps, sizes: Sizes, x: Buffer, result: Buffer
) -> None:
    """Write down the steps of `_emit_steps` with the factors of each product rounded to bfloat16.

    The product of all q is large for small singular values, and its rounding errors in bfloat16
    would spoil all others; so x itself is multiplied in each step.
    """

    def product(primitive: onednn.Primitive, left: Buffer, right: Buffer, target: Buffer) -> Buffer:
        records.multiply(primitive, records.rounded(left), records.rounded(right), target)
        return target

    count, rows, columns = sizes
    x_x = onednn.products(count, rows, columns, rows, "weights", onednn.BFLOAT16)
    g_g = onednn.products(count, rows, rows, rows, kind=onednn.BFLOAT16)
    q_x = onednn.products(count, rows, rows, columns, kind=onednn.BFLOAT16)
    records.emit(Code.NORMALIZE, x, count, rows * columns)
    for number, (a, b, c) in enumerate(steps, 1):
        gram = product(x_x, x, x, Buffer(count * rows * rows))
        linear = _linear(records, gram, count, rows, c, b)
        q = product(g_g, gram, linear, Buffer(count * rows * rows))
        _shift(records, q, count, rows, a)
        x = product(q_x, q, x, result if number == len(steps) else Buffer(x.size))


def _linear(
    records: Records, source: Buffer, count: int, rows: int, scale: float, shift: float
) -> Buffer:
    """Return scale m + shift for each of `count` matrices [rows, rows]."""
    target = Buffer(source.size)
    arguments = source, count, rows, bits(scale), bits(shift), target
    records.emit(Code.SCALE_AND_SHIFT, *arguments)
    return target


def _shift(records: Records, matrices: Buffer, count: int, rows: int, shift: float) -> None:
    """Add a number to the diagonal of each of `count` matrices [rows, rows], in place."""
    arguments = matrices, count, rows, bits(1), bits(shift), matrices
    records.emit(Code.SCALE_AND_SHIFT, *arguments)
