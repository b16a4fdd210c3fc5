"""What a checkpoint records of the run that wrote it, and whether another run may continue it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from typing import Any

from models import cpu

from data import by_epoch
from data.augment import Augmentation
from utils import UserError
from weights.checkpoint import Checkpoint

from . import flags, identity
from .settings import Settings
from .trainer_inputs import Data
from .versions import versions


def record(settings: Settings, data: Data) -> dict[str, Any]:
    """Return what decides the result of a run beside its weights, for `check`."""
    return {
        "settings": asdict(settings),
        "augmentation": asdict(data.train.dataset.augment),
        "training_images": len(data.train.dataset),
        **data.identity,
        "versions": versions(),
    }


def cpu_path(saved: Checkpoint | None, low_memory: bool) -> str:
    """Return how a CPU is to compute, see models.cpu: as the run did that `saved` is of, if any.

    It ends with the same bits then. What REPARAM_CPU says comes first, but where --low-memory needs
    operator by operator. Runs that do not say were made before there were compiled programs.
    """
    if low_memory and cpu.path() == "fast":
        return "matmul"
    if saved is None or saved.training is None or cpu.is_chosen():
        return cpu.path()
    return saved.training["versions"].get("REPARAM_CPU", "matmul")


def check(
    checkpoint: Checkpoint, settings: Settings, data: Data, extend: bool = False
) -> list[str]:
    """Return warnings about a run that continues the one which saved `checkpoint`.

    With `extend` there may be more epochs than that run had.

    Raises UserError when that run was another: other settings, augmentation, preprocessing or data.
    Fields that older runs did not have count as their defaults, and what they did not record of
    their data is not compared.
    """
    recorded = checkpoint.training
    if recorded is None:
        raise UserError(
            "this checkpoint has weights only, so training cannot go on from it; "
            "resume from a latest.pkl"
        )
    now = record(settings, data)
    warnings = _check_epochs(recorded["settings"]["epochs"], settings.epochs, extend)
    _check_fields(
        Settings,
        _as_typed({**recorded["settings"], "epochs": settings.epochs}),
        _as_typed(now["settings"]),
    )
    if recorded.get("augmentation") is not None:  # the oldest runs have no record of it
        _check_fields(Augmentation, recorded["augmentation"], now["augmentation"])
    if checkpoint.preprocessing != data.val.preprocessing:
        raise UserError(
            f"the run to resume had {checkpoint.preprocessing}, and now it is "
            f"{data.val.preprocessing}; give the same --size, --crop-ratio and other flags of the "
            "preprocessing"
        )
    if recorded["training_images"] != now["training_images"]:
        raise UserError(
            f"the run to resume had {recorded['training_images']} training images, and now there "
            f"are {now['training_images']}; give the same --data"
        )
    warnings += _check_images(recorded, now, checkpoint.classes)
    before = {"REPARAM_CPU": "matmul", **recorded["versions"]}
    return warnings + [
        f"warning: {name} was {before.get(name)} and is now {version}: "
        "the result may differ in the last bits"
        for name, version in now["versions"].items()
        if before.get(name, version) != version  # older runs do not record everything
    ]


def _check_epochs(before: int, now: int, extend: bool) -> list[str]:
    """Return what `extend` does to the schedule; raise UserError where the epochs do not fit."""
    if now == before:
        return []
    if not extend or now < before:
        advice = f"give --epochs {before}, or start a new run with another --tag"
        if now > before:
            advice = f"add --extend to go on to {now} epochs, or {advice}"
        raise UserError(f"the run to resume had epochs {before}, and now it is {now}; {advice}")
    return [
        f"--extend: going on to {now} epochs instead of {before}; from here on the learning rate "
        f"is that of a run of {now} epochs"
    ]


def _check_images(
    recorded: Mapping[str, Any], now: Mapping[str, Any], classes: list[str] | None
) -> list[str]:
    """Return warnings about the images' names.

    Raises UserError when the classes, `classes` where the run recorded none, or the validation set
    have changed.
    """
    before = recorded.get("classes", classes)
    change = before and identity.class_difference(before, now["classes"])
    if change:
        raise UserError(
            f"the run to resume had other classes: {change}; give the same --data, or start from "
            "these weights with --pretrained and another --tag"
        )
    change = "validation" in recorded and identity.validation_difference(
        recorded["validation"], now["validation"], now["classes"]
    )
    if change:
        raise UserError(
            f"the run to resume had another validation set: {change}; give the same --data, or "
            "start from these weights with --pretrained and another --tag"
        )
    if recorded.get("training_names") in (None, now["training_names"]):
        return []
    return ["warning: training images have other names, and so another order, than before"]


def _as_typed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings whose learning rate is that of --lr, to 12 digits."""
    lr = settings["lr"] * 256 / settings["batch_size"]
    return {**settings, "lr": float(f"{lr:.12g}")}


def _check_fields(owner: type, recorded: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise UserError at the first field of a dataclass that differs, by its flag's name."""
    for field in fields(owner):
        default = None if field.default is MISSING else field.default
        before = recorded.get(field.name, default)
        if not by_epoch.same(before, now[field.name]):
            name = flags.destination(field) if field.metadata else field.name
            raise UserError(
                f"the run to resume had {name.replace('_', '-')} {before}, and now it is "
                f"{now[field.name]}; give the same flags, or start a new run with another --tag"
            )
