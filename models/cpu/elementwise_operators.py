"""Elementwise operators of MegEngine that its Python functions do not give."""

from __future__ import annotations

from megengine.core.ops.builtin import Elemwise

MULTIPLY_ADD = Elemwise(mode=Elemwise.Mode.FUSE_MUL_ADD3)  # a * b + c in one pass
BLEND = Elemwise(mode=Elemwise.Mode.FUSE_MUL_ADD4)  # a * b + c * d in one pass
