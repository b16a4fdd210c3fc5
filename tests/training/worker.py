"""What test_distributed.py runs as several workers: `worker.py COUNT PLAN FOLDER`.

PLAN is "train" for eight steps, "watched" for two with clipping, averages and precise statistics,
or how worker 1 fails after two: raise, exit, _exit.
"""

import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from models.repvgg import RepVGG

import megengine as mge
import numpy as np

import utils
from data import datasets, transforms
from data.augment import Augmentation
from data.loader import Loader
from training.distributed import launch
from training.loop import Trainer
from training.run_folder import RunFolder
from training.settings import Settings
from training.trainer_inputs import Data, Network, Run


class Failing(Loader):
    def training(self, seed, epoch, skip=0):
        if epoch == 2 and self.rank == 1:
            end = {"raise": partial(int, "seven"), "exit": sys.exit, "_exit": partial(os._exit, 0)}
            end[self.plan]()
        return super().training(seed, epoch, skip)


def work(plan, folder, workers):
    # coloured noise: the digits' three equal channels would make a 1x1 kernel ill-conditioned
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (95, 32, 32, 3), np.uint8)
    labels = rng.integers(0, 10, 95, np.int32)
    classes = list("0123456789")
    train = datasets.Dataset("noise", images[:48], labels[:48], classes, Augmentation())
    val = datasets.Dataset("other noise", images[48:], labels[48:], classes, Augmentation())
    mge.random.seed(workers.rank)  # the first worker's weights are everyone's
    width = (0.25, 0.125, 0.125, 0.125)
    model = RepVGG((1, 2, 4, 1), width, num_classes=10)
    model.arch = "RepVGGA0"
    preprocessing = transforms.Preprocessing(size=32, crop_ratio=1.0)
    loaders = [
        (Loader if plan in ("train", "watched") else Failing)(
            dataset, preprocessing, batch, rank=workers.rank, world=workers.size
        )
        for dataset, batch in ((train, 48), (val, 10))
    ]
    loaders[0].plan = plan
    settings = Settings(epochs=8, batch_size=48, lr=0.01, sync_bn=True)  # a step an epoch
    if plan == "watched":
        watched = {"ema": 0.5, "precise_bn": 48, "clip_norm": 2.0, "agc": 0.02}
        settings = replace(settings, epochs=2, **watched)
    run_folder = RunFolder(folder, silent=workers.rank > 0)
    trainer = Trainer(Network(model), Data(*loaders), settings, Run(run_folder, workers))
    trainer.fit()
    if workers.rank == 0:
        history = {key: [row[key] for row in trainer.history] for key in trainer.history[0]}
        weights = {name: value.numpy() for name, value in model.named_parameters()}
        np.savez(folder / "result.npz", **history, **weights)
    return 0


if __name__ == "__main__":
    count, plan, folder = sys.argv[1:]
    utils.run(lambda: launch.run(partial(work, plan, Path(folder)), int(count)))
