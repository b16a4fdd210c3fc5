"""The update of the weights in a step: gradients of all workers, clipping, optimizer, average."""

from __future__ import annotations

from typing import Any

import models

import megengine as mge
import numpy as np
from megengine.autodiff import GradManager

from . import gradients, mixed_precision, optimizer
from .distributed.process_group import Workers
from .ema import WeightAverage
from .parameters import kinds
from .settings import Settings
from .trainer_inputs import Network


class Update:
    """The parameters that learn, with the optimizer and whatever else has a state.

    Attributes:
        learnt: parameters by name: all, or with Settings.freeze those of the classifier.
        grad_manager: MegEngine's recorder of gradients, with these parameters attached.
        optimizer: see optimizer.make.
        average: the moving average of the weights, or None.
        scaler: scale of the loss in mixed precision, or None.
    """

    def __init__(self, network: Network, settings: Settings, workers: Workers):
        self.network, self.settings, self.workers = network, settings, workers
        model = network.model
        names = {name for name, _ in model.named_parameters()}
        if settings.freeze:
            names = set(models.head_names(model))
        self.learnt = {name: p for name, p in model.named_parameters() if name in names}
        self.grad_manager = GradManager().attach(self.learnt.values())
        groups = optimizer.parameter_groups(
            model, 0.0, settings.custom_l2, names, settings.decay_rule, settings.layer_decay
        )
        self.optimizer = optimizer.make(
            settings.optimizer, groups, settings.lr, settings.momentum, settings.nesterov
        )
        self.average = WeightAverage(model, settings.ema) if settings.ema else None
        self.scaler = mixed_precision.loss_scaler(settings.amp)

    @property
    def loss_scale(self) -> float:
        """Factor of the loss whose gradients `apply` expects."""
        return 1.0 if self.scaler is None else self.scaler.scale_factor

    def apply(self, step: int, rate: float, weight_decay: float) -> None:
        """Change the weights by the gradients that the parameters have, and clear these.

        Args:
            step: number of the step, counted from 0.
            rate: learning rate.
            weight_decay: of the parameters that decay.
        """
        optimizer.set_learning_rate(self.optimizer, rate)
        optimizer.set_weight_decay(self.optimizer, weight_decay)
        self._exchange()
        if self.scaler is not None:
            learnt = [p for p in self.learnt.values() if p.grad is not None]
            self.scaler.unscale(learnt)
            self.scaler.update()
            if all(p.grad is None for p in learnt):  # they have overflowed: no step
                return
        if self.settings.agc:
            gradients.clip_adaptively(self._without_classifier(), self.settings.agc)
        if self.settings.clip_norm:
            gradients.clip_by_norm(self.learnt.values(), self.settings.clip_norm)
        with mixed_precision.of_update(self.settings.amp):
            self.optimizer.step().clear_grad()
        if self.average is not None:
            self.average.update(step)

    def _exchange(self) -> None:
        """Average the gradients over the workers.

        So that the networks stay the same, so are the running statistics of the batch norms, which
        --freeze leaves as they are.
        """
        shared = [p.grad for p in self.learnt.values() if p.grad is not None]
        if self.network.quantized is not None:
            self.network.quantized.observe(self.workers)
        elif not (self.settings.sync_bn or self.settings.freeze):
            shared += self.network.model.buffers()
        self.workers.average(shared)

    def _without_classifier(self) -> list[tuple[mge.Tensor, str]]:
        """Return what is clipped adaptively as (parameter, kind) pairs."""
        model = self.network.model
        kind, head = kinds(model), set(models.head_names(model))
        return [(p, kind[name]) for name, p in self.learnt.items() if name not in head]

    def state_dict(self) -> dict[str, Any]:
        """Return the states of optimizer, average and scaler as arrays and plain values."""
        return {
            "optimizer": _plain(self.optimizer.state_dict()),
            "ema": self.average and self.average.state_dict(),
            "scaler": self.scaler and self.scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of the same network and settings."""
        if self.scaler is not None and state["scaler"] is not None:  # None from a CPU
            self.scaler.load_state_dict(state["scaler"])
        if state["optimizer"]["state"]:  # SGD without momentum has none; MegEngine expects some
            self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["ema"])


def _plain(value: object) -> object:
    """Return a copy of an optimizer's state in arrays and plain values."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, mge.Tensor):
        return value.numpy()
    return value.item() if isinstance(value, np.generic) else value
