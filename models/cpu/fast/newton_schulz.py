"""Matrices made orthogonal for Muon, all of an optimizer in one program.

Those of one shape are multiplied together, on all cores.
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
Steps = tuple[tuple[float, float, float], ...]

# owner -> shapes of its matrices and steps -> the program and memory for its results
_prepared: WeakKeyDictionary[object, dict[tuple, tuple[Program, memory.Pool]]] = WeakKeyDictionary()


def orthogonal(owner: object, matrices: Sequence[mge.Tensor], steps: Steps) -> list[mge.Tensor]:
    """Divide float32 matrices [R, C] by their norms, and return them after Newton-Schulz steps.

    A step with the coefficients a, b, c is x <- (a + b x x' + c (x x')^2) x. Raises onednn.Error.
    """
    shapes = tuple((int(rows), int(columns)) for rows, columns in (m.shape for m in matrices))
    programs = _prepared.setdefault(owner, {})
    if (shapes, steps) not in programs:
        programs[shapes, steps] = _program(shapes, steps), memory.Pool(shapes)
    program, pool = programs[shapes, steps]
    addresses, owners = memory.addresses_of(matrices)
    memory.settle()
    block = pool.take()
    program.set("matrices", addresses)
    program.set("results", block.addresses)
    program.forward()
    del owners
    return block.tensors()


def _program(shapes: Sequence[Shape], steps: Steps) -> Program:
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
        _emit_steps(records, steps, len(numbers), rows, columns, x, result)
        for k, number in enumerate(numbers):
            target = Slot(count + number)
            if shapes[number] == (rows, columns):
                records.emit(Code.COPY, Part(result, k * size), size, target)
            else:
                records.transpose(Part(result, k * size), target, 1, rows, columns)
    return Program(records, {"matrices": slice(0, count), "results": slice(count, 2 * count)})


def _emit_steps(
    records: Records,
    steps: Steps,
    count: int,
    rows: int,
    columns: int,
    x: Buffer,
    result: Buffer,
) -> None:
    """Write down the steps for `count` matrices of at least as many columns as rows.

    A step is x <- q x with q = a + b g + c g^2 and g = x x'. As q is a polynomial of g, the product
    of all q and the last g are computed without x.
    """
    squares = onednn.products(count, rows, rows, rows)

    def product(left: Buffer, right: Buffer) -> Buffer:
        target = Buffer(count * rows * rows)
        records.multiply(squares, left, right, target)
        return target

    def scale_and_shift(source: Buffer, scale: float, shift: float, target: Buffer) -> None:
        arguments = source, count, rows, bits(scale), bits(shift), target
        records.emit(Code.SCALE_AND_SHIFT, *arguments)

    records.emit(Code.NORMALIZE, x, count, rows * columns)
    gram, total = Buffer(count * rows * rows), None
    x_x = onednn.products(count, rows, columns, rows, transposed="weights")
    records.multiply(x_x, x, x, gram)
    for number, (a, b, c) in enumerate(steps, 1):
        linear = Buffer(gram.size)
        scale_and_shift(gram, c, b, linear)
        q = product(gram, linear)
        scale_and_shift(q, 1, a, q)
        total = q if total is None else product(q, total)
        if number < len(steps):
            gram = product(q, product(gram, q))
    assert total is not None
    records.multiply(onednn.products(count, rows, rows, columns), total, x, result)
