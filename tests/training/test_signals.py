"""Signals and lost output while a network trains, in this process or in one of its own."""

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import Pipe

import pytest

import utils
from data.loader import Loader
from tests.support import ROOT
from tests.training.test_loop import train  # noqa: F401  (a fixture)
from training import signals
from training.run_folder import RunFolder
from training.signals import Interrupted, StopSignal
from weights import checkpoint


def send(number):
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_is_noted_and_the_previous_handlers_come_back(number):
    before = signal.getsignal(number)
    with StopSignal() as outer:
        send(number)
        send(signal.SIGTERM)
        assert outer.number == number  # the first counts
        with StopSignal() as inner, inner:  # nested, and the same one again
            assert inner.number == number
    assert signal.getsignal(number) == before


def test_only_a_broken_output_stops_a_run():
    """A connection to another process, such as a data worker that was killed, is none."""
    with StopSignal() as stop:
        ours, theirs = Pipe()
        theirs.close()
        with pytest.raises(BrokenPipeError):
            ours.send(1)
        assert stop.number is None
        signals.output_lost()
        assert stop.number == signal.SIGPIPE


def test_a_command_whose_output_is_lost_keeps_its_status():
    """The status of a run that has saved for that reason; else 1."""
    program = (
        "import time, utils\n"
        "def main():\n"
        "    time.sleep(0.3)\n"
        "    print('x', end='')\n"
        "    return {}\n"
        "utils.run(main)\n"
    )
    for status, expected in ((141, 141), (0, 1)):
        done = subprocess.run(
            ["bash", "-c", 'set -o pipefail; "$0" -c "$1" | true', sys.executable,
             program.format(status)],
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": ""},
            capture_output=True,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (expected, b"")


def test_nohup_is_respected():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopSignal() as stop:
            send(signal.SIGHUP)
            assert stop.number is None
    finally:
        signal.signal(signal.SIGHUP, before)


WAITING = """
import time
from multiprocessing import Pipe
from training.signals import StopSignal
with StopSignal() as stop:
    print("ready", flush=True)
    while True:
        time.sleep(0.05)
"""


def test_only_a_second_ctrl_c_ends_at_once():
    command = [sys.executable, "-c", WAITING]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
        run.stdout.readline()
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
            assert run.poll() is None
            run.send_signal(number)
            time.sleep(0.3)
        assert run.wait(5) == -signal.SIGINT
        assert b"ended at once" in run.stderr.read()


TWICE = """
import signal, time
from training.signals import StopSignal
with StopSignal():
    for _ in range(2):
        signal.raise_signal(signal.SIGINT)
    print("alive", flush=True)
    time.sleep(0.2)
    signal.raise_signal(signal.SIGINT)
"""


def test_ctrl_c_that_arrives_twice_within_a_moment_is_one():
    """`timeout -s INT` sends it to the process and to its group."""
    done = subprocess.run([sys.executable, "-c", TWICE], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (-signal.SIGINT, "alive\n")
    assert "stopping as soon as possible; Ctrl-C again ends at once" in done.stderr


def test_sigusr1_saves_and_goes_on(train, tmp_path, monkeypatch):  # noqa: F811
    saved = []
    save = checkpoint.save

    def note(contents, path):
        if path.name == "latest.pkl":
            saved.append(contents.training["step"])
        save(contents, path)

    monkeypatch.setattr(checkpoint, "save", note)
    load = Loader.training

    def signalled(self, *arguments, **options):
        for batch in load(self, *arguments, **options):
            if not saved:
                send(signal.SIGUSR1)
            yield batch

    monkeypatch.setattr(Loader, "training", signalled)
    *_, trainer = train(epochs=2)  # of two steps
    assert saved == [1, 2, 2, 4, 4] and trainer.step == 4  # before and after each evaluation
    log = (tmp_path / "log.txt").read_text()
    assert log.count("SIGUSR1: saved ") == log.count("latest.pkl after step 1\n") == 1


def test_a_run_whose_output_is_lost_saves_before_it_ends(train, tmp_path, monkeypatch):  # noqa: F811
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(Interrupted, match=r"SIGPIPE \(the output can no longer be written\)"):
            train(epochs=3)
        monkeypatch.undo()
        with pytest.raises(OSError):
            full.flush()
        full.buffer.raw.close()
    latest = checkpoint.read(tmp_path / "latest.pkl")
    assert latest.training["step"] == 2 and len(latest.training["history"]) == 1
    assert "epoch 1/3" in (tmp_path / "log.txt").read_text()
    assert (tmp_path / "best.pkl").exists()


def test_a_signal_while_the_workers_are_stuck_saves(train, tmp_path, monkeypatch):  # noqa: F811
    """Nothing is waited for: the step is over, and the next batch may never come."""

    def stuck(self, *arguments, **options):
        (tmp_path / "latest.pkl").unlink()  # that of before the evaluation
        threading.Timer(0.2, send, [signal.SIGTERM]).start()
        while True:
            time.sleep(0.05)
            self.while_waiting()
        yield

    monkeypatch.setattr(Loader, "evaluation", stuck)
    with pytest.raises(Interrupted, match="SIGTERM"):
        train()
    assert checkpoint.read(tmp_path / "latest.pkl").training["step"] == 2


def test_the_log_takes_names_in_any_encoding(tmp_path):
    RunFolder(tmp_path).log(os.fsdecode(b"caf\xe9"))
    assert (tmp_path / "log.txt").read_bytes() == b"caf\\xe9\n"


@pytest.mark.parametrize(
    "redirection, status, said",
    [
        (">&-", 0, ""),
        (">&- 2>&- <&-", 0, ""),
        (">/dev/full", 2, "-c: error: cannot write to the standard output: No space left"),
        ("| true", 0, ""),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_to_nowhere_is_no_traceback(tmp_path, redirection, status, said, unbuffered):
    program = (
        "import utils, time\n"
        "def main():\n"
        "    time.sleep(0.2)\n"
        "    utils.write_atomically('file', lambda file: file.write(b'whole'))\n"
        "    print('x' * 100)\n"
        "    return 0\n"
        "utils.run(main)\n"
    )
    done = subprocess.run(
        ["sh", "-c", f'"$0" -c "$1" {redirection}', sys.executable, program],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
        capture_output=True,
        text=True,
    )
    assert done.returncode == status
    assert len(done.stderr.splitlines()) == bool(said) and done.stderr.startswith(said)
    assert (tmp_path / "file").read_bytes() == b"whole"


@pytest.mark.parametrize("where", ["locked", os.fsdecode(b"caf\xe9")])
def test_a_file_that_the_system_refuses_is_one_sentence(capfd, where):
    def main():
        raise PermissionError(errno.EACCES, "Permission denied", where)

    with pytest.raises(SystemExit) as leaving:
        utils.run(main)
    out, err = capfd.readouterr()
    assert (leaving.value.code, out) == (2, "")
    assert err.endswith(f": error: {utils.shown(where)}: Permission denied; give another file or "
                        "folder\n")  # fmt: skip


def test_a_module_is_run_from_the_project_whatever_the_working_directory_holds(tmp_path):
    for name in ("utils.py", "runpy.py", "random.py"):
        (tmp_path / name).write_text("raise SystemExit('the wrong file was imported')\n")
    command = [*utils.module_command("training.signals", "-W", "ignore"), "argument"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
