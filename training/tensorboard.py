"""TensorBoard event files: a run's loss, rate and speed by step, and metrics.csv's rows."""

from __future__ import annotations

from pathlib import Path


class EventFile:
    """Points by step in a new event file in `folder`.

    `step` is where the run stands: what an earlier file holds of later steps, from before a crash,
    is marked as void, and the points that come again are no duplicates.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboardX import SummaryWriter  # the writing half of TensorBoard, without it

        # Its file names have the time in seconds only.
        suffix = f".from-step-{step}"
        self._writer = SummaryWriter(str(folder), purge_step=step + 1, filename_suffix=suffix)

    def add(self, group: str, values: dict[str, float], step: int) -> None:
        """Points named group/name."""
        for name, value in values.items():
            self._writer.add_scalar(f"{group}/{name}", value, step)

    def flush(self) -> None:
        """Write what has been added; before a checkpoint that a run may go on from."""
        self._writer.flush()

    def close(self) -> None:
        """Write and close the file."""
        self._writer.close()
