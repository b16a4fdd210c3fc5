"""TensorBoard event files: loss, learning rate and speed by step, and the rows of metrics.csv."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any


class EventFile:
    """A new event file in `folder`, with points by step.

    `step` is the number of steps that the run has done. What an earlier file holds of later steps,
    from before a crash, is marked as void, so that TensorBoard shows no point twice. Where it
    cannot be written, as on a full disk, a line on stderr says so once, and the run goes on.
    """

    def __init__(self, folder: Path, step: int):
        # Not SummaryWriter: its flush leaves behind what its thread has not yet come to.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import SessionLog

        # Without the suffix, names have the time in seconds only.
        self._writer: Any = EventsWriter(str(folder / "events"), f".from-step-{step}")
        self._write(step + 1, file_version="brain.Event:2")
        self._write(step + 1, session_log=SessionLog(status=SessionLog.START))

    def _write(self, step: int, **content: object) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._try(lambda w: w.write_event(Event(wall_time=time.time(), step=step, **content)))

    def _try(self, write: Callable[[Any], None]) -> None:
        if self._writer is None:
            return
        try:
            write(self._writer)
        except OSError as error:
            self._writer = None
            print(f"warning: no more points for TensorBoard: {error.strerror}", file=sys.stderr)

    def add(self, group: str, values: dict[str, float], step: int) -> None:
        """Add a point for each value, named group/name."""
        from tensorboardX.summary import scalar

        for name, value in values.items():
            self._write(step, summary=scalar(f"{group}/{name}", value))

    def flush(self) -> None:
        """Write all points out; to be called before a checkpoint from which a run may go on."""
        self._try(lambda writer: writer.flush())
