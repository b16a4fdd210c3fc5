"""RepVGG for CIFAR (chenyaofo/pytorch-cifar-models): DingXiaoH's layout, with a total stride of 8.

Nothing in RepVGGA2's files, or in a deploy form, tells the stride: all names and shapes are those
of a network with a total stride of 32.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from . import files

STRIDE = 8
# (architecture, classes) -> name of the published file, which ends with the start of its SHA-256
PUBLISHED = {
    ("RepVGGA0", 10): "cifar10_repvgg_a0-ef08a50e.pt",
    ("RepVGGA1", 10): "cifar10_repvgg_a1-38d2431b.pt",
    ("RepVGGA2", 10): "cifar10_repvgg_a2-09488915.pt",
    ("RepVGGA0", 100): "cifar100_repvgg_a0-2df1edd0.pt",
    ("RepVGGA1", 100): "cifar100_repvgg_a1-c06b21a7.pt",
    ("RepVGGA2", 100): "cifar100_repvgg_a2-8e71b1f8.pt",
}


def is_published(path: str | PathLike) -> bool:
    """Return whether a file is one of the published ones, told by its name and its SHA-256."""
    path = Path(path)
    if path.name not in PUBLISHED.values() or not path.is_file():
        return False
    return files.sha256(path).startswith(path.stem.rpartition("-")[2])


def note(arch: str, num_classes: int) -> str:
    """Return what is to be said of a file that is taken for a network with a total stride of 32."""
    return (
        "a total stride of 32 is assumed, as the tensors do not tell it from 8; convert the file "
        f"with --stride {STRIDE} if it is like chenyaofo/pytorch-cifar-models' "
        f"{PUBLISHED[arch, num_classes]}"
    )
