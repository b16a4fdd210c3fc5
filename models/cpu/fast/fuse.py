"""Sums of batch norms as single operations, as a re-parameterized block is made of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..symbol import Operation


@dataclass(frozen=True)
class NormSum:
    """The sum of the batch norms of some maps and of other maps, with a ReLU on it if `relu`.

    Attributes:
        number: of the operation whose result this is.
        normed: numbers of the maps that are normed, each with the number of its batch norm.
        others: numbers of the maps that are added as they are.
        relu: whether a ReLU follows.
    """

    number: int
    normed: tuple[tuple[int, int], ...]
    others: tuple[int, ...]
    relu: bool


def fuse(operations: list[Operation]) -> list[int | NormSum]:
    """Return the numbers of the operations that are computed alone, and the sums, in their order.

    An intermediate result that something else uses too is kept. The last one is the output.
    """
    uses = Counter(number for operation in operations for number in operation.inputs)
    uses[len(operations) - 1] += 1

    def terms(number: int, root: bool) -> tuple[list[tuple[int, int]], list[int]]:
        operation = operations[number]
        if operation.kind in ("norm", "sum") and (root or uses[number] == 1):
            if operation.kind == "norm":
                return [(operation.inputs[0], number)], []
            normed, others = [], []
            for each in operation.inputs:
                more_normed, more_others = terms(each, False)
                normed += more_normed
                others += more_others
            return normed, others
        return [], [number]

    fused: list[int | NormSum] = []
    absorbed: set[int] = set()
    for number in reversed(range(1, len(operations))):
        if number in absorbed:
            continue
        operation, inner = operations[number], number
        relu = operation.kind == "relu" and uses[operation.inputs[0]] == 1
        if relu:
            inner = operation.inputs[0]
        if operations[inner].kind in ("norm", "sum"):
            normed, others = terms(inner, True)
            if normed:
                fused.append(NormSum(number, tuple(normed), tuple(others), relu))
                absorbed |= _between(operations, inner, {n for n, _ in normed} | set(others))
                continue
        fused.append(number)
    return fused[::-1]


def _between(operations: list[Operation], number: int, ends: set[int]) -> set[int]:
    """Return `number` and the operations that lead from `ends` to it."""
    if number in ends:
        return set()
    return {number}.union(*(_between(operations, n, ends) for n in operations[number].inputs))
