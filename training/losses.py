"""The losses that training minimizes; objective.py adds them up."""

from __future__ import annotations

import megengine as mge
import megengine.functional as F
import megengine.module as M


def cross_entropy(
    logits: mge.Tensor, labels: mge.Tensor, label_smoothing: float = 0.0
) -> mge.Tensor:
    """Return the mean cross entropy of logits [N, C] with labels [N] or soft targets [N, C].

    Soft targets, as mixup makes them, are smoothed in the same way: (1 - s) target + s / C.
    """
    if labels.ndim == 1:
        return F.nn.cross_entropy(logits, labels, label_smooth=label_smoothing)
    log_probability = F.logsoftmax(logits, axis=1)
    loss = -F.mean(F.sum(labels * log_probability, axis=1))
    if label_smoothing:
        loss = (1 - label_smoothing) * loss - label_smoothing * F.mean(log_probability)
    return loss


def binary_cross_entropy(
    logits: mge.Tensor, labels: mge.Tensor, label_smoothing: float = 0.0
) -> mge.Tensor:
    """Return the binary cross entropy of logits [N, C], a mean over images and classes.

    The labels are smoothed as in cross_entropy. Source: Wightman et al., ResNet strikes back, 2021
    (arXiv 2110.00476), section 2.3.
    """
    targets = F.one_hot(labels, logits.shape[1]).astype("float32") if labels.ndim == 1 else labels
    targets = (1 - label_smoothing) * targets + label_smoothing / logits.shape[1]
    return F.nn.binary_cross_entropy(logits, targets)


LOSSES = {"cross-entropy": cross_entropy, "bce": binary_cross_entropy}


def classification(
    outputs: mge.Tensor | dict[str, mge.Tensor],
    labels: mge.Tensor,
    label_smoothing: float = 0.0,
    auxiliary_weight: float = 0.0,
    kind: str = "cross-entropy",
) -> tuple[mge.Tensor, mge.Tensor]:
    """Return the loss of the logits [N, C], and the logits themselves.

    `labels` are as in cross_entropy, and `kind` is one of LOSSES. A network with several heads
    gives a dict; the loss is then that of "main" plus `auxiliary_weight`, an attribute of
    RepVGGPlus and RepViT, times the sum of the others.
    """
    if not isinstance(outputs, dict):
        return LOSSES[kind](outputs, labels, label_smoothing), outputs
    losses = {name: LOSSES[kind](o, labels, label_smoothing) for name, o in outputs.items()}
    main = losses.pop("main")
    return main + auxiliary_weight * sum(losses.values()), outputs["main"]


def distillation(
    student: mge.Tensor, teacher: mge.Tensor, kind: str, temperature: float = 1.0
) -> mge.Tensor:
    """Return the mean distance of the student's logits [N, C] from the teacher's.

    - "hard": cross entropy with the teacher's best class, not smoothed. Source: Touvron et al.,
      DeiT, ICML 2021.
    - "soft": Kullback-Leibler divergence of the two distributions at `temperature`, times its
      square. Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015.
    """
    if kind == "hard":
        return F.nn.cross_entropy(student, F.argmax(teacher, axis=1))
    ours, theirs = (F.logsoftmax(logits / temperature, axis=1) for logits in (student, teacher))
    return F.mean(F.sum(F.exp(theirs) * (theirs - ours), axis=1)) * temperature**2


def split_heads(
    outputs: mge.Tensor | dict[str, mge.Tensor],
) -> tuple[mge.Tensor | dict[str, mge.Tensor], mge.Tensor]:
    """Return the outputs that learn from the labels, and the logits that learn from a teacher.

    RepViT has a head for the teacher, "distilled"; elsewhere the main logits learn from both.
    """
    if not isinstance(outputs, dict):
        return outputs, outputs
    others = {name: logits for name, logits in outputs.items() if name != "distilled"}
    return others, outputs.get("distilled", outputs["main"])


def custom_l2(model: M.Module) -> mge.Tensor:
    """Return the sum over all blocks of RepVGG's custom L2 term; see RepVGGBlock.custom_l2."""
    return sum(block.custom_l2() for block in model.modules() if hasattr(block, "custom_l2"))
