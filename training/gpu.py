"""What MegEngine offers on GPUs only: mixed precision, and dropping activations dynamically.

Written to its documented interface; nothing here has been run on a GPU.
"""

from __future__ import annotations

import re

from models import environment

import megengine as mge

from utils import UserError

# Measured with MegEngine 1.13 and RepVGGA0.
_NOT_ON_A_CPU = {
    "--amp": "on a CPU a convolution in half precision takes 85 times as long; leave it out",
    "--dtr": "on a CPU it frees nothing, and a step took 21 GB; use --low-memory",
}


def check(amp: bool, dtr: str | None) -> None:
    """Raise UserError when one of them is wanted without a GPU, or when `dtr` is not a size."""
    on_a_cpu = environment.on_cpu()
    for flag, wanted in (("--amp", amp), ("--dtr", dtr is not None)):
        if wanted and on_a_cpu:
            raise UserError(f"{flag} needs a GPU: {_NOT_ON_A_CPU[flag]}")
    if dtr is not None and not re.fullmatch(r"\d+(\.\d+)?[KMG]B", dtr):
        raise UserError(f"--dtr {dtr} is not a size such as 5GB")


def enable_dtr(threshold: str) -> None:
    """Switch dynamic tensor rematerialization on (Kirisame et al., ICLR 2021).

    Above `threshold` of memory, such as "5GB", activations are dropped and computed again when they
    are needed.
    """
    mge.dtr.eviction_threshold = threshold
    mge.dtr.enable()
