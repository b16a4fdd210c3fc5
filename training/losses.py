"""What training minimizes."""

from __future__ import annotations

import megengine as mge
import megengine.functional as F
import megengine.module as M


def classification(
    outputs: mge.Tensor | dict[str, mge.Tensor],
    labels: mge.Tensor,
    label_smoothing: float = 0.0,
    auxiliary_weight: float = 0.0,
) -> tuple[mge.Tensor, mge.Tensor]:
    """Cross entropy of the logits [N, classes], and the logits themselves.

    A network with several heads gives a dict; the loss is then that of "main" plus
    `auxiliary_weight` times the sum of the others (the attribute of RepVGGPlus and RepViT).
    """

    def cross_entropy(logits: mge.Tensor) -> mge.Tensor:
        return F.nn.cross_entropy(logits, labels, label_smooth=label_smoothing)

    if not isinstance(outputs, dict):
        return cross_entropy(outputs), outputs
    auxiliary = sum(cross_entropy(logits) for name, logits in outputs.items() if name != "main")
    return cross_entropy(outputs["main"]) + auxiliary_weight * auxiliary, outputs["main"]


def custom_l2(model: M.Module) -> mge.Tensor:
    """The sum over all blocks of RepVGG's custom L2 term; see RepVGGBlock.custom_l2."""
    return sum(block.custom_l2() for block in model.modules() if hasattr(block, "custom_l2"))
