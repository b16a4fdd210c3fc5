"""What MegEngine offers on GPUs only: dropping activations dynamically.

Written to its documented interface; nothing here has been run on a GPU.
"""

from __future__ import annotations

import re

from models import environment

import megengine as mge

from utils import UserError


def check(dtr: str | None) -> None:
    """Raise UserError when `dtr` is given without a GPU, or is not a size such as "5GB"."""
    if dtr is not None and environment.on_cpu():
        raise UserError("--dtr needs a GPU: on a CPU it frees nothing; use --low-memory instead")
    if dtr is not None and not re.fullmatch(r"\d+(\.\d+)?[KMG]B", dtr):
        raise UserError(f"--dtr {dtr} is not a size such as 5GB")


def enable_dtr(threshold: str) -> None:
    """Switch dynamic tensor rematerialization on (Kirisame et al., ICLR 2021).

    Above `threshold` of memory, such as "5GB", activations are dropped and computed again when they
    are needed.
    """
    mge.dtr.eviction_threshold = threshold
    mge.dtr.enable()
