"""A small network of each family, with every kind of block that it has."""

from models.fastvit import FastViT
from models.mobileone import MobileOne
from models.repghost import RepGhost
from models.replknet import RepLKNet
from models.repvgg import RepVGG
from models.repvgg_plus import RepVGGPlus
from models.repvit import RepViT

import megengine.functional as F
import megengine.module as M

_DEPTHS, _WIDTH = (1, 2, 2, 1), (0.25, 0.25, 0.125, 0.125)  # 16, 32, 32 and 64 channels
SMALL = {
    "RepVGG": lambda: RepVGG(_DEPTHS, _WIDTH, groups=4, num_classes=10),
    "RepVGG, SE": lambda: RepVGG(_DEPTHS, _WIDTH, se="before", num_classes=10),
    "RepVGGplus": lambda: RepVGGPlus(_DEPTHS, _WIDTH, se="after", num_classes=10),
    "MobileOne": lambda: MobileOne(_WIDTH, branches=2, se=True, depths=_DEPTHS, num_classes=10),
    "RepViT": lambda: RepViT((16, 24, 32, 40), (1, 1, 2, 1), num_classes=10),
    "RepGhost": lambda: RepGhost(0.25, num_classes=10),
    "RepLKNet": lambda: RepLKNet((8, 8, 16, 24), (1, 1, 1, 1), (31, 13, 9, 7), num_classes=10),
    "FastViT": lambda: FastViT((8, 16, 32, 64), (1, 1, 2, 1), 2, num_classes=10),
}


class Clipped(M.Module):
    """What no exporter takes."""

    def forward(self, x):
        return F.clip(x, 0, 6)
