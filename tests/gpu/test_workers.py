"""Workers on GPUs, with stand_in.py for the GPUs: how they start, fail and are stopped."""

import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from tests.support import ROOT, write_image_folder
from tests.training.test_run import equal
from training.distributed import cluster, launch
from utils import UserError

STAND_IN = ROOT / "tests" / "gpu" / "stand_in.py"
STAND_INS = {"PYTHONPATH": str(ROOT), "MGE_DEFAULT_DEVICE": "cpu0"}
# 12 images in batches of 4: 3 steps an epoch
FLAGS = ["--arch", "RepVGGA0", "--size", "32", "--batch-size", "4", "--epochs", "2",
         "--print-freq", "1", "--warmup-epochs", "0", "--workers", "0"]  # fmt: skip
LONG = ["--epochs", "500"]
ADVICE = "; go on from the last checkpoint with --resume auto"
SOON = 10 * max(1, os.getloadavg()[0] / os.cpu_count())  # seconds, on a machine that is not busy


class Run:
    """A command on the stand-ins, and all processes that it has started so far."""

    def __init__(self, folder, *arguments, before=(), **variables):
        folder.mkdir(parents=True, exist_ok=True)
        self.out = folder / f"out-{time.monotonic_ns()}"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PMI", "SLURM"))}
        variables = {"STAND_IN_FOLDER": str(folder / "exchange"), **STAND_INS, **variables}
        with open(self.out, "w") as file:
            self.process = subprocess.Popen(
                [*map(str, before), sys.executable, "-u", STAND_IN, *map(str, arguments)],
                cwd=ROOT,
                env=environment | variables,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.family = {}

    @property
    def lines(self):
        text = self.out.read_text()
        return [line for line in text.splitlines() if not line.startswith(("info:", "debug:"))]

    def wait_for(self, pattern):
        end = time.monotonic() + 400
        while not re.search(pattern, self.out.read_text()):
            assert self.process.poll() is None and time.monotonic() < end, self.out.read_text()
            time.sleep(0.05)
        parent = psutil.Process(self.process.pid)
        self.family |= {child.pid: child for child in parent.children(recursive=True)}

    def worker(self, local_rank):
        for child in self.family.values():
            is_worker = str(STAND_IN) in child.cmdline() and "mpiexec" not in child.cmdline()[0]
            if is_worker and child.environ().get("MPI_LOCALRANKID") == str(local_rank):
                return child
        raise AssertionError(f"there is no worker {local_rank}")

    def finish(self, within=400):
        """Exit status and last line, once nothing is left of the run."""
        start = time.monotonic()
        status = self.process.wait(within)
        gone, alive = psutil.wait_procs(
            list(self.family.values()), max(1, within - time.monotonic() + start)
        )
        assert not alive, [child.cmdline() for child in alive]
        return status, (self.lines or [""])[-1]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_image_folder(tmp_path_factory.mktemp("data") / "images", train=4, val=2)


@pytest.fixture
def train(tmp_path, data):
    """A function that starts a training with two workers, unless flags say otherwise."""
    runs = []

    def start(*flags, before=(), **variables):
        command = ["train.py", "--data", data, "--save", tmp_path, "--tag", "a", *FLAGS]
        runs.append(Run(tmp_path / "run", *command, *flags, before=before, **variables))
        return runs[-1]

    yield start
    for run in runs:
        if run.process.poll() is None:
            run.process.kill()


def latest(folder, tag="a"):
    return pickle.loads((folder / "RepVGGA0" / tag / "latest.pkl").read_bytes())


@pytest.mark.slow
def test_a_killed_worker_ends_the_run_which_resumes_to_the_same_bits(train, tmp_path):
    straight = train("--ngpus", "2", "--tag", "b", "--save-freq", "1")
    status, line = straight.finish()
    assert status == 0 and line.startswith("best top-1"), straight.lines
    assert any(line.endswith("; 2 workers") for line in straight.lines)
    for victim in (0, 1):
        run = train("--ngpus", "2", "--save-freq", "1", "--resume", "auto")
        run.wait_for(r"epoch 2 step [123]/3" if victim else r"epoch 1 step 2/3")
        run.worker(victim).kill()
        status, line = run.finish(SOON)
        assert status not in (0, None)
        assert f"worker {victim} ended before its work was done (killed)" in line
        assert line.endswith(ADVICE)
    run = train("--ngpus", "2", "--save-freq", "1", "--resume", "auto")
    assert run.finish()[0] == 0 and any("resuming" in line for line in run.lines), run.lines
    assert equal(latest(tmp_path, "a"), latest(tmp_path, "b"))


@pytest.mark.slow
def test_a_traceback_comes_with_its_reason_last(train):
    run = train("--ngpus", "2", STAND_IN_RAISE="1 1")
    run.wait_for("epoch 1 step 1/3")
    status, line = run.finish(SOON)
    assert status not in (0, None) and "Traceback" in "".join(run.lines)
    assert line == "stand_in.py: error: worker 1: ValueError: a planted error" + ADVICE


@pytest.mark.slow
def test_an_error_of_the_user_is_a_sentence(train, data, tmp_path):
    run = train("--ngpus", "2", "--data", tmp_path / "nowhere")
    status, line = run.finish()
    assert status == 2 and "Traceback" not in "".join(run.lines)
    assert re.search(r"error: worker \d: there is no data folder .*nowhere", line), run.lines
    run = train("--ngpus", "3")
    assert run.finish() == (
        2, "stand_in.py: error: --ngpus 3, but this machine has 2 GPUs; give --ngpus 2"
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "Ctrl-C"])
def test_a_signal_saves_before_leaving(train, tmp_path, how):
    run = train("--ngpus", "2", "--save-freq", "0", *LONG)
    run.wait_for("epoch 1 step 2/3")
    if how == "Ctrl-C":
        os.killpg(run.process.pid, signal.SIGINT)
    else:
        run.process.send_signal(signal.Signals[how])
    status, line = run.finish(SOON)
    number = signal.SIGTERM if how == "SIGTERM" else signal.SIGINT
    assert status == 128 + number
    assert f"stopped by {number.name} after step" in line, run.lines
    assert latest(tmp_path)["training"]["step"] >= 1


@pytest.mark.slow
def test_a_killed_parent_leaves_no_process(train):
    run = train("--ngpus", "2", *LONG)
    run.wait_for("epoch 1 step 2/3")
    run.process.kill()
    assert run.finish(SOON)[0] == -signal.SIGKILL


@pytest.fixture
def free_port():
    with socket.socket() as listener:
        listener.bind(("", 0))
        return listener.getsockname()[1]


def test_a_batch_script_of_slurm_starts_its_workers_here():
    slurm = {"SLURM_JOB_ID": "1", "SLURM_JOBID": "1", "SLURM_NODELIST": "elsewhere"}
    slurm |= {"SLURM_NNODES": "1", "SLURM_TASKS_PER_NODE": "2"}
    command = [*launch.mpiexec(2), "echo", "here"]
    process = subprocess.run(
        command, env=os.environ | slurm, capture_output=True, text=True, timeout=60
    )
    assert (process.returncode, process.stdout) == (0, "here\nhere\n"), process.stderr


def two_hosts(train, port, *flags, **variables):
    """Two hosts with a GPU each, and a launcher on each."""
    shared = ["--ngpus", "1", "--world-size", "2", "--dist-port", str(port), *flags]
    return [train(*shared, "--rank", str(r), STAND_IN_GPUS="1", **variables) for r in (0, 1)]


@pytest.mark.slow
def test_two_hosts_train_and_stop_together(train, tmp_path, free_port):
    a, b = two_hosts(train, free_port)
    assert (a.finish()[0], b.finish()[0]) == (0, 0), a.lines + b.lines
    assert any(line.endswith("; 2 workers") for line in a.lines)
    a, b = two_hosts(train, free_port, "--tag", "b", *LONG)
    a.wait_for("epoch 1 step 2/3")
    b.wait_for("")
    b.process.send_signal(signal.SIGTERM)
    # both may first have to end an epoch, with its validation and its files
    assert [run.finish(3 * SOON)[0] for run in (a, b)] == [143, 143], a.lines + b.lines
    assert "stopped by SIGTERM after step" in a.lines[-1]


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_host_that_fails_ends_the_other(train, free_port, victim):
    runs = two_hosts(train, free_port, *LONG)
    runs[0].wait_for("epoch 1 step 2/3")
    runs[1].wait_for("")
    runs[victim].worker(0).kill()
    for run in (runs[victim], runs[1 - victim]):
        status, line = run.finish(SOON)
        assert status not in (0, None)
        assert f"worker {victim} ended before its work was done" in line, run.lines
    runs = two_hosts(train, free_port, "--tag", "c", *LONG, STAND_IN_RAISE=f"{victim} 2")
    for run in runs:
        status, line = run.finish()
        assert status not in (0, None)
        assert re.search(rf"worker {victim} on \S+: ValueError: a planted error", line), run.lines


@pytest.mark.slow
def test_a_stopped_worker_counts_as_lost(train, free_port):
    a, b = two_hosts(train, free_port, *LONG, "--worker-timeout", "8")
    a.wait_for("epoch 1 step 2/3")
    b.wait_for("")
    b.worker(0).suspend()
    try:
        status, line = a.finish(SOON + 10)
        assert status == 2
        assert re.search(r"worker 1 on \S+ has sent no heartbeat for 8 s", line), a.lines
    finally:
        b.worker(0).resume()
    assert b.finish(SOON)[0] not in (0, None)


@pytest.mark.slow
def test_in_an_mpiexec_of_the_users_own(train):
    before = [*launch.mpiexec(2)]
    run = train(before=before)
    assert run.finish()[0] == 0 and any(line.endswith("; 2 workers") for line in run.lines)
    run = train("--tag", "b", before=before, STAND_IN_RAISE="1 1")
    assert run.finish() == (
        1, "stand_in.py: error: worker 1: ValueError: a planted error" + ADVICE
    )  # fmt: skip


@pytest.mark.slow
def test_under_slurm(train, free_port):
    def task(rank, *flags):
        variables = {"SLURM_NTASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": "0"}
        variables |= {"SLURM_NODELIST": "localhost", "SLURM_STEP_ID": "0", "STAND_IN_GPUS": "1"}
        return train("--dist-port", str(free_port), *flags, **variables)

    runs = [task(rank) for rank in (0, 1)]
    assert [run.finish()[0] for run in runs] == [0, 0], runs[0].lines + runs[1].lines
    assert any(line.endswith("; 2 workers") for line in runs[0].lines)
    status, line = task(0, "--ngpus", "3").finish()
    assert status == 2 and "Slurm has started the 2 workers, which --ngpus 3" in line


@pytest.mark.parametrize(
    "hosts, first",
    [
        ("a", "a"),
        ("node-1.cluster,node-2.cluster", "node-1.cluster"),
        ("node[01-04,7],other", "node01"),
        ("node[3,5-7]", "node3"),
        ("rack[1-2]n[08-10]", "rack1n08"),
    ],
)
def test_the_first_host_of_slurms_list(hosts, first):
    assert cluster.first_host(hosts) == first


def test_slurms_variables():
    variables = {"SLURM_NTASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1"}
    variables |= {"SLURM_NODELIST": "n[1-2]"}
    # a batch script, which starts its workers itself, whatever --ntasks says
    assert cluster.slurm_task(variables) is None
    variables["SLURM_STEP_ID"] = "0"
    task = cluster.slurm_task(variables)
    assert (task.rank, task.size, task.local_rank, task.address) == (5, 8, 1, "n1")
    assert cluster.slurm_task(variables | {"PMI_RANK": "5"}) is None
    assert cluster.slurm_task({}) is None
    assert cluster.gpu(task.local_rank, variables) == 1
    assert cluster.gpu(task.local_rank, variables | {"SLURM_GPUS_PER_TASK": "1"}) == 0
    with pytest.raises(UserError, match="are to be whole numbers"):
        cluster.slurm_task(variables | {"SLURM_PROCID": "x"})
    with pytest.raises(UserError, match="give the first host by --dist-addr"):
        cluster.first_host("a b")
