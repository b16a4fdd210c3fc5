"""RepVGG for CIFAR (chenyaofo/pytorch-cifar-models): DingXiaoH's layout, with a total stride of 8.

Nothing in RepVGGA2's files, or in a deploy form, tells the stride: all names and shapes are those
of a network with a total stride of 32.
"""

from __future__ import annotations

from dataclasses import replace
from os import PathLike
from pathlib import Path

from . import files
from .dingxiaoh import REPVGG as DINGXIAOH
from .keymap import Source


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


STRIDE = 8
URL = "https://github.com/chenyaofo/pytorch-cifar-models/releases/download/repvgg/{}"
# (architecture, classes) -> name of the published file, which ends with the start of its SHA-256
PUBLISHED = {
    ("RepVGGA0", 10): "cifar10_repvgg_a0-ef08a50e.pt",
    ("RepVGGA1", 10): "cifar10_repvgg_a1-38d2431b.pt",
    ("RepVGGA2", 10): "cifar10_repvgg_a2-09488915.pt",
    ("RepVGGA0", 100): "cifar100_repvgg_a0-2df1edd0.pt",
    ("RepVGGA1", 100): "cifar100_repvgg_a1-c06b21a7.pt",
    ("RepVGGA2", 100): "cifar100_repvgg_a2-8e71b1f8.pt",
}
# (architecture, classes) -> top-1 and top-5 in percent, of the best epoch on the test images
FIGURES = {
    ("RepVGGA0", 10): (94.39, 99.82),
    ("RepVGGA1", 10): (94.89, 99.83),
    ("RepVGGA2", 10): (94.98, 99.82),
    ("RepVGGA0", 100): (75.22, 92.93),
    ("RepVGGA1", 100): (76.12, 92.71),
    ("RepVGGA2", 100): (77.18, 93.51),
}
# number of classes -> mean and standard deviation of the channels, RGB, for pixels from 0 to 1
MEANS = {10: (0.4914, 0.4822, 0.4465), 100: (0.5070, 0.4865, 0.4409)}
DEVIATIONS = {10: (0.2023, 0.1994, 0.2010), 100: (0.2673, 0.2564, 0.2761)}
# number of classes -> their names, in the order of the labels
CLASSES = {
    10: _words("airplane automobile bird cat deer dog frog horse ship truck"),
    100: _words(
        """
        apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus
        butterfly camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch
        crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo
        keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain
        mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck pine_tree plain
        plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk
        skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone
        television tiger tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm
        """
    ),
}

# not among the layouts of --source, as its names are those of DingXiaoH's
REPVGG: Source = replace(
    DINGXIAOH,
    name="chenyaofo",
    title="chenyaofo/pytorch-cifar-models",
    archs="RepVGGA[012]",
)


def files_like(arch: str, num_classes: int) -> list[str]:
    """Return the names of the published files of a network; for 0 classes, a backbone, of any."""
    return [
        name
        for (published, count), name in PUBLISHED.items()
        if published == arch and num_classes in (0, count)
    ]


def is_published(path: str | PathLike, arch: str, num_classes: int) -> bool:
    """Return whether a file is the published one of a network, told by its SHA-256."""
    name, path = PUBLISHED.get((arch, num_classes)), Path(path)
    if name is None or not path.is_file():
        return False
    return files.sha256(path).startswith(Path(name).stem.rpartition("-")[2])


def note(arch: str, num_classes: int) -> str:
    """Return what is to be said of a file that is taken for a network with a total stride of 32."""
    return (
        "a total stride of 32 is assumed, as the tensors do not tell it from 8; convert the file "
        f"with --stride {STRIDE} if it is like chenyaofo/pytorch-cifar-models' "
        f"{' or '.join(files_like(arch, num_classes))}"
    )
