"""What a Trainer is given beside its settings: the network, the data, and how it is run."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import megengine.module as M

from data import by_epoch
from data.evaluation import Score
from data.loader import Loader
from utils import UserError

from . import drop_path, identity
from .distributed.process_group import Workers
from .run_folder import RunFolder
from .settings import Settings
from .teacher import Teacher

if TYPE_CHECKING:
    from .qat import FakeQuantized  # needs ONNX


@dataclass(frozen=True)
class Network:
    """The network to be trained, and those that help.

    Attributes:
        model: the network in train form, made by `models.create`.
        quantized: for Settings.qat, the int8 form of `model`; it is trained and evaluated instead.
        teacher: the network to learn from beside the labels; Settings.teacher is its name.
    """

    model: M.Module
    quantized: FakeQuantized | None = None
    teacher: Teacher | None = None

    @property
    def computed(self) -> M.Module:
        """The module that computes logits: the int8 form if there is one, else the model."""
        return self.model if self.quantized is None else self.quantized


@dataclass(frozen=True)
class Data:
    """The data for training, and the data for the evaluation after each epoch."""

    train: Loader
    val: Loader

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What a checkpoint records of the images, see identity.describe."""
        return identity.describe(self.train.dataset, self.val.dataset)


@dataclass(frozen=True)
class Run:
    """The folder, processes and memory of a training; none of them changes its result.

    Attributes:
        folder: where results and checkpoints go.
        workers: the processes that share each batch; the network, and all else that is kept, is the
            same in all of them after every step.
        print_freq: steps between log lines.
        save_freq: steps between saves, beside the one after every epoch; 0 for none.
        low_memory: compute activations again instead of keeping them.
        keep: number of the best epochs, and of the last ones, whose weights stay in the folder.
        extend: let a run that is resumed have more epochs than it had.
    """

    folder: RunFolder
    workers: Workers = field(default_factory=Workers)
    print_freq: int = 20
    save_freq: int = 0
    low_memory: bool = False
    extend: bool = False
    keep: int = 0


def check_sizes(network: Network, data: Data, settings: Settings, run: Run) -> None:
    """Raise UserError where the settings do not suit the network, the data or the workers."""
    images, workers = len(data.train.dataset), run.workers.size
    if settings.batch_size > images:
        raise UserError(
            f"the batch of {settings.batch_size} is larger than the {images} "
            f"training images; use --batch-size {images} or less"
        )
    model = network.model
    if settings.custom_l2 and not any(hasattr(m, "custom_l2") for m in model.modules()):
        raise UserError(f"--custwd is for RepVGG's own blocks, and {model.arch} has none")
    if max(by_epoch.values(settings.drop_path)) and not drop_path.branches(model):
        raise UserError(
            f"--drop-path leaves out residual branches of RepLKNet and FastViT, and {model.arch} "
            "is trained without; leave it out"
        )
    if settings.batch_size < workers:
        raise UserError(
            f"the batch of {settings.batch_size} has less than one image for each of the "
            f"{workers} workers; use --batch-size {workers} or more"
        )


def check_any(score: Score, kind: str) -> None:
    """Raise UserError when a score is of no image; `kind` is what they are for."""
    if score.total == 0:
        raise UserError(
            f"none of the {kind} images could be read, so there is no result; leave out "
            "--skip-bad-images to see the name of the first of them"
        )
