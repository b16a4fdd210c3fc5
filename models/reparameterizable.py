"""The base of all blocks with two forms: branches for training, one convolution for deployment."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import megengine as mge
import megengine.module as M

from . import reparam as fusion  # in the class, `reparam` is the attribute
from .reparam import LinearMap, Read, float64


class Reparameterizable(M.Module):
    """A block whose branches, in evaluation mode, are together one convolution: `reparam`.

    In train form `reparam` is None; in deploy form the branches are. A subclass names the
    attributes of its branches, creates either these or `reparam`, and implements the abstract
    methods. One that does more than the convolution, such as an activation, extends `forward`.

    Attributes:
        branch_names: attributes that are None in deploy form.
        reparam: the fused convolution, with a bias.
    """

    branch_names: ClassVar[tuple[str, ...]]
    reparam: M.Conv2d | None

    def __init__(self) -> None:
        super().__init__()
        self.reparam = None
        self._drop_branches()

    def forward(self, x: mge.Tensor) -> mge.Tensor:
        return self.forward_branches(x) if self.reparam is None else self.reparam(x)

    @abstractmethod
    def forward_branches(self, x: mge.Tensor) -> mge.Tensor:
        """Return what the branches compute together: the output of `reparam` in deploy form."""

    @abstractmethod
    def linear_map(self, read: Read) -> LinearMap:
        """Return the branches as one convolution, with its numbers as `read` gives them."""

    @abstractmethod
    def main_convolution(self) -> M.Conv2d:
        """Return the branch whose stride, groups, dtype and mode the fused convolution takes."""

    def fuse_in_place(self, read: Read = float64) -> None:
        """Replace the branches by their convolution; a block in deploy form stays as it is."""
        if self.reparam is None:
            self.reparam = fusion.to_conv2d(self.linear_map(read), like=self.main_convolution())
            self._drop_branches()

    def _drop_branches(self) -> None:
        for name in self.branch_names:
            setattr(self, name, None)
