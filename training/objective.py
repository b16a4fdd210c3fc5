"""The objective of a training step: all heads, the teacher, and the custom L2 term together."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import megengine as mge
import megengine.module as M
import numpy as np

from . import losses
from .settings import Settings
from .teacher import Teacher

# logits [N, C], or those of each head by its name
Outputs: TypeAlias = mge.Tensor | dict[str, mge.Tensor]


class Objective:
    """The loss that the training of `model` minimizes, as the settings say."""

    def __init__(self, model: M.Module, settings: Settings, teacher: Teacher | None = None):
        self.model, self.settings, self.teacher = model, settings, teacher
        self.auxiliary_weight = getattr(model, "auxiliary_weight", 0.0)

    def for_images(
        self, images: np.ndarray, targets: np.ndarray, scale: float, weight_decay: float
    ) -> Callable[[Outputs], tuple[mge.Tensor, mge.Tensor, mge.Tensor]]:
        """Return a function of the network's outputs for `images`.

        It returns the loss times `scale`, which is what the gradients are of; the loss, a mean over
        the images; and the main logits [N, C].

        Args:
            images: [N, C, H, W], which the teacher is shown at once.
            targets: labels [N] or soft targets [N, C].
            scale: factor of the loss.
            weight_decay: factor of RepVGG's custom L2 term, where the settings ask for it.
        """
        taught = None if self.teacher is None else self.teacher(images)

        def objective(outputs: Outputs) -> tuple[mge.Tensor, mge.Tensor, mge.Tensor]:
            loss, logits = self._loss(outputs, mge.Tensor(targets), taught)
            if self.settings.custom_l2:
                loss = loss + 0.5 * weight_decay * losses.custom_l2(self.model)
            return loss * scale, loss, logits

        return objective

    def _loss(
        self, outputs: Outputs, targets: mge.Tensor, taught: mge.Tensor | None
    ) -> tuple[mge.Tensor, mge.Tensor]:
        """Return the loss and the main logits; `taught` are the teacher's logits [N, C]."""
        settings = self.settings
        if taught is not None:
            outputs, student = losses.split_heads(outputs)
        loss, logits = losses.classification(
            outputs, targets, settings.label_smoothing, self.auxiliary_weight, settings.loss
        )
        if taught is not None:
            distance = losses.distillation(
                student, taught, settings.distillation, settings.distillation_temperature
            )
            alpha = settings.distillation_alpha
            loss = (1 - alpha) * loss + alpha * distance
        return loss, logits
