"""What a run tells about the settings that change by epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from data import by_epoch


def columns(owners: Sequence[Any], epoch: int, epochs: int) -> dict[str, float]:
    """Return the numbers that change by epoch as they are in epoch 0, 1, ... of a run of `epochs`.

    Args:
        owners: dataclasses that may hold such settings.
        epoch: number of the epoch.
        epochs: number of epochs of the run.

    Returns columns of metrics.csv, which are the same for all epochs.
    """
    now = [by_epoch.at(owner, epoch, epochs) for owner in owners]
    values = {
        name: getattr(then, name)
        for owner, then in zip(owners, now, strict=True)
        for name in by_epoch.changing(owner)
    }
    return {name: value for name, value in values.items() if isinstance(value, int | float)}


def line(owners: Sequence[Any], epoch: int) -> str | None:
    """Return a line of the log about the settings that have another value from an epoch on."""
    changed = [
        f"{name.replace('_', '-')} {_text(by_epoch.value_at(value, epoch, epoch + 1))}"
        for owner in owners
        for name, value in by_epoch.changing(owner).items()
        if epoch and epoch in by_epoch.starts(value)
    ]
    return f"from epoch {epoch + 1} on: {', '.join(changed)}" if changed else None


def _text(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
