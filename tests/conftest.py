"""Fixtures that several tests use."""

import importlib
import os
import signal

from models import environment
from models.replknet import RepLKNet
from models.repvgg import RepVGG
from models.repvgg_plus import RepVGGPlus

import megengine as mge
import numpy as np
import pytest

import utils
from tests.support import change_architecture, write_image_folder

environment.tune_for_computing()
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two tests run at a time
os.environ["no_proxy"] = os.environ["NO_PROXY"] = "127.0.0.1,localhost"  # where test servers are

# a shell's background job ignores Ctrl-C, and nohup SIGHUP: these tests and what they start do not
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True)
def same_initial_weights():
    """Give each test the same initial weights in every run."""
    mge.random.seed(0)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def tiny():
    """A function that makes small networks of each structural kind."""

    def make(kind="dense", num_classes=10, deploy=False, seed=0):
        mge.random.seed(seed)
        common = {
            "depths": (1, 2, 4, 1),
            "width": (0.25, 0.125, 0.125, 0.125),
            "num_classes": num_classes,
            "deploy": deploy,
        }
        if kind == "plus":
            model = RepVGGPlus(**common, se="after")
        else:
            extra = {
                "dense": {},
                "groups": {"groups": 4},
                "se": {"se": "before"},
                "qa": {"block": "qa"},
                "qa, groups, se": {"block": "qa", "groups": 4, "se": "before"},
            }[kind]
            model = RepVGG(**common, **extra)
        model.arch = "RepVGGA0"
        return model

    return make


@pytest.fixture
def small_repvgg_a0(monkeypatch):
    """Makes RepVGGA0 a network with few blocks and channels."""
    config = {"depths": (1, 2, 4, 1), "width": (0.25, 0.125, 0.125, 0.125)}
    change_architecture(monkeypatch, "RepVGGA0", RepVGG, config)


@pytest.fixture
def small_replknet(monkeypatch):
    """Makes RepLKNet31B one of few channels and blocks, its kernels and its stride as they are."""
    config = {"channels": (4, 8, 8, 16), "depths": (1, 1, 1, 1)}
    change_architecture(monkeypatch, "RepLKNet31B", RepLKNet, config)


@pytest.fixture
def images(rng):
    return rng.standard_normal((4, 3, 64, 64)).astype(np.float32)


@pytest.fixture
def image_folder(tmp_path):
    """A function that writes a small folder of JPEG files; see support.write_image_folder."""

    def write(root=None, **options):
        return write_image_folder(root or tmp_path / "photos", **options)

    return write


@pytest.fixture
def command(capfd, monkeypatch):
    """Runs a command's main in this process: (exit status, stdout, stderr)."""
    monkeypatch.setattr(environment, "return_freed_memory", lambda: None)  # others train after it

    def run(name, *arguments):
        module = importlib.import_module(name)
        capfd.readouterr()
        with pytest.raises(SystemExit) as leaving:
            utils.run(lambda: module.main([str(argument) for argument in arguments]))
        return leaving.value.code, *capfd.readouterr()

    return run
