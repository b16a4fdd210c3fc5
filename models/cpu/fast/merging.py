"""Which sums of batch norms of convolutions are computed as one convolution."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from ..symbol import Operation
from .convolution import geometry_of
from .fuse import NormSum
from .onednn_layers import Geometry


@dataclass(frozen=True)
class MergedSum:
    """The sum of batch norms of convolutions of one map, of norms of this map itself, and of maps.

    Attributes:
        number: of the operation whose result this is.
        source: number of the map.
        branches: numbers of the convolutions, None for the map itself, each with the number of its
            batch norm.
        others: numbers of the maps that are added as they are.
        relu: whether a ReLU follows.
        geometry: of the one convolution.
    """

    number: int
    source: int
    branches: tuple[tuple[int | None, int], ...]
    others: tuple[int, ...]
    relu: bool
    geometry: Geometry


def merge(
    operations: list[Operation], fused: list[int | NormSum]
) -> list[int | NormSum | MergedSum]:
    """Return what `fuse` returns, with merged sums for those that are faster so."""
    uses = Counter(number for operation in operations for number in operation.inputs)
    result: list[int | NormSum | MergedSum] = []
    gone: set[int | None] = set()
    for item in reversed(fused):
        merged = _merged(operations, uses, item) if isinstance(item, NormSum) else None
        if merged is not None:
            gone.update(convolution for convolution, _ in merged.branches)
        if item not in gone:
            result.append(merged or item)
    return result[::-1]


def _merged(operations: list[Operation], uses: Counter[int], item: NormSum) -> MergedSum | None:
    """Return the merged sum, or None where the branches are not of one kind, or it is slower."""
    last = operations[max(number for number, _ in item.normed)]
    if last.kind != "convolution":
        return None
    source = last.inputs[0]
    branches: list[tuple[int | None, int]] = []
    geometries: list[Geometry] = []
    for number, norm in item.normed:
        operation = operations[number]
        if number == source:
            branches.append((None, norm))
        elif (operation.kind, operation.inputs) == ("convolution", (source,)) and uses[number] == 1:
            geometries.append(geometry_of(operations, number))
            branches.append((number, norm))
        else:
            return None
    geometry = _pointwise(geometries, len(branches))
    if geometry is None:
        return None
    return MergedSum(item.number, source, tuple(branches), item.others, item.relu, geometry)


def _pointwise(geometries: list[Geometry], branches: int) -> Geometry | None:
    """Return the 1x1 convolution that several make, if it takes fewer multiplications."""
    first = geometries[0]
    plain = (first.kernel, first.stride, first.padding, first.groups, first.bias)
    if plain != (1, 1, 0, 1, False) or any(g != first for g in geometries):
        return None
    rows, i, o = first.n * first.h * first.w, first.i, first.o
    alone = 3 * len(geometries) * rows * i * o
    merged = rows * i * (2 * i + 3 * o) + 2 * branches * o * i * i
    return first if merged < alone else None
