"""Training on the CPUs of two hosts: equal to one host's, and what happens when one is lost.

The network is small (tests/gpu/stand_in.py without GPUs), as only the paths are of interest.
"""

import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support import ROOT, write_image_folder
from tests.training.hosts import Hosts, missing
from tests.training.test_run import equal
from training.distributed import launch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=f"two hosts: {missing()}"),
]
SMALL = str(ROOT / "tests" / "gpu" / "stand_in.py")
MPIEXEC = launch.mpiexec(1)[0]
FLAGS = ["--arch", "RepVGGA0", "--size", "32", "--batch-size", "4", "--epochs", "2",
         "--print-freq", "1", "--warmup-epochs", "0", "--workers", "0",
         "--save-freq", "1"]  # fmt: skip
LONG = ["--epochs", "500"]
SOON = 10 * max(1, os.getloadavg()[0] / os.cpu_count())  # seconds, on a machine that is not busy


@pytest.fixture(scope="module")
def hosts(tmp_path_factory):
    hosts = Hosts(tmp_path_factory.mktemp("hosts"))
    yield hosts
    hosts.close()


class Run:
    """train.py with a worker on each host."""

    def __init__(self, hosts, tmp_path, *flags):
        self.hosts = hosts
        data = hosts.folder / "images"
        if not data.exists():
            write_image_folder(data, train=4, val=2)
        self.save = tmp_path / "checkpoints"
        self.save.mkdir(exist_ok=True)
        self.command = [SMALL, "train.py", "--data", data, "--save", self.save, *FLAGS, *flags]
        self.out = tmp_path / f"out-{time.monotonic_ns()}"

    def start(self, *before):
        variables = {"PYTHONPATH": str(ROOT), "MGE_DEFAULT_DEVICE": "cpu0", "STAND_IN_GPUS": "0"}
        with open(self.out, "w") as file:
            self.process = subprocess.Popen(
                [*before, *map(str, self.command)],
                cwd=ROOT,
                env=os.environ | variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return self

    def start_on_both(self):
        mpiexec = [MPIEXEC, *self.hosts.launch, "-n", "2", sys.executable, "-u"]
        return self.start(*self.hosts.command("node-a", *mpiexec))

    def wait_for(self, pattern):
        end = time.monotonic() + 400
        while not re.search(pattern, self.out.read_text()):
            assert self.process.poll() is None and time.monotonic() < end, self.out.read_text()
            time.sleep(0.05)

    def finish(self, within=400):
        """Exit status and text, once no worker is left on either host."""
        end = time.monotonic() + within
        status = self.process.wait(within)
        while any(self.hosts.processes(name, SMALL) for name in ("node-a", "node-b")):
            assert time.monotonic() < end, "workers are left"
            time.sleep(0.1)
        return status, self.out.read_text()

    def latest(self, tag):
        return pickle.loads((self.save / "RepVGGA0" / tag / "latest.pkl").read_bytes())

    def kill(self, name, number=signal.SIGKILL):
        for process in self.hosts.processes(name, SMALL):
            if MPIEXEC not in Path(f"/proc/{process}/cmdline").read_text():
                os.kill(process, number)


@pytest.fixture
def train(hosts, tmp_path):
    runs = []

    def make(*flags):
        runs.append(Run(hosts, tmp_path, *flags))
        return runs[-1]

    yield make
    for name in ("node-a", "node-b"):
        hosts.cut(name, down=False)
        for process in hosts.processes(name, SMALL):
            os.kill(process, signal.SIGKILL)


def test_two_hosts_give_the_bits_of_one_also_after_a_kill(train):
    one = train("--tag", "one", "--ngpus", "2").start(sys.executable, "-u")
    status, out = one.finish()
    assert status == 0, out
    run = train("--tag", "two").start_on_both()
    run.wait_for("epoch 1 step 2/3")
    run.kill("node-b")
    assert run.finish(SOON)[0] not in (0, None)
    run = train("--tag", "two", "--resume", "auto").start_on_both()
    status, out = run.finish()
    assert status == 0 and "resuming" in out and "not shared" not in out, out
    assert equal(run.latest("one"), run.latest("two"))


@pytest.mark.parametrize("how", ["cut", "stopped"])
def test_a_host_that_is_lost_ends_the_run(train, hosts, how):
    run = train("--tag", how, "--worker-timeout", "10", *LONG).start_on_both()
    run.wait_for("epoch 1 step 2/3")
    if how == "cut":
        hosts.cut("node-b")
    else:
        run.kill("node-b", signal.SIGSTOP)
    status = run.process.wait(20 + SOON)
    out = run.out.read_text()
    assert status not in (0, None)
    assert "worker 1 on node-b has sent no heartbeat for 10 s (--worker-timeout)" in out, out
    if how == "stopped":
        run.kill("node-b", signal.SIGCONT)
    run.finish(20 + SOON)  # the lost host misses the other too
    assert run.latest(how)["training"]["step"] >= 1


def test_hosts_that_share_no_checkpoints_resume_from_worker_0s(train, hosts):
    run = train("--tag", "unshared")
    hosts.run("node-b", "mount", "-t", "tmpfs", "tmpfs", run.save)
    try:
        run.start_on_both()
        run.wait_for("epoch 1 step 2/3")
        run.kill("node-b")
        run.finish(SOON)
        run = train("--tag", "unshared", "--resume", "auto").start_on_both()
        status, out = run.finish()
        assert status == 0 and re.search("resuming .* after step", out), out
        assert "is not shared: worker 1 on node-b got the checkpoint from worker 0" in out
    finally:
        hosts.run("node-b", "umount", run.save)


def test_a_signal_to_mpiexec_saves_and_ends_all(train, hosts):
    run = train("--tag", "signal", *LONG).start_on_both()
    run.wait_for("epoch 1 step 2/3")
    run.process.send_signal(signal.SIGINT)
    status, out = run.finish(SOON)
    assert status == 128 + signal.SIGINT
    assert re.search("stopped by SIGINT after step .*; saved ", out), out
    assert run.latest("signal")["training"]["step"] >= 1


def test_a_failing_worker_has_the_last_word(train, hosts):
    run = train("--tag", "fail")
    hosts.run("node-b", "mount", "-t", "tmpfs", "tmpfs", hosts.folder / "images")
    try:
        status, out = run.start_on_both().finish()
    finally:
        hosts.run("node-b", "umount", hosts.folder / "images")
    assert status == 2
    last = out.splitlines()[-1]
    assert re.search(
        r"error: worker 1 on node-b: the data folder \S+/images has no train/", last
    ), out


def test_flags_that_contradict_mpiexec_are_refused(train, hosts):
    for flags in ["--ngpus", "2"], ["--world-size", "3"], ["--rank", "1", "--world-size", "2"]:
        status, out = train("--tag", "no", *flags).start_on_both().finish()
        assert status == 2, out
        assert f"{flags[0]} {flags[1]} contradicts the mpiexec around it" in out.splitlines()[-1]
