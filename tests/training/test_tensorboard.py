"""Event files, read back record by record as TensorBoard does."""

import resource
import signal
import struct

from tensorboardX.proto.event_pb2 import Event, SessionLog

from training.tensorboard import EventFile


def points(folder):
    """{(name, step): [values]} that TensorBoard would show."""
    shown = {}
    for path in sorted(folder.glob("events.out.tfevents.*"), key=lambda p: p.stat().st_mtime_ns):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack("<Q", content[:8])
            event = Event.FromString(content[12 : 12 + length])
            content = content[12 + length + 4 :]
            if event.session_log.status == SessionLog.START:
                shown = {key: v for key, v in shown.items() if key[1] < event.step}
            for value in event.summary.value:
                shown.setdefault((value.tag, event.step), []).append(value.simple_value)
    return shown


def test_points_that_come_again_are_no_duplicates(tmp_path):
    first = EventFile(tmp_path, step=0)
    for step in range(1, 6):
        first.add("step", {"loss": step}, step)
    first.flush()  # killed here; the last checkpoint is of step 3
    second = EventFile(tmp_path, step=3)
    for step in range(4, 7):
        second.add("step", {"loss": 10 * step}, step)
    second.flush()
    assert points(tmp_path) == {
        ("step/loss", step): [step if step <= 3 else 10 * step] for step in range(1, 7)
    }


def test_a_disk_that_is_full_ends_no_run(tmp_path, capfd):
    """The file's size is limited here, which fails like a full disk: a signal, or an error."""
    events = EventFile(tmp_path, step=0)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        for step in range(300):
            events.add("train", {"loss": 1.0}, step)
            events.flush()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert capfd.readouterr().err.count("warning: no more points for TensorBoard") == 1
