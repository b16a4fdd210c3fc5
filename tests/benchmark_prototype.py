"""This project's training step against the prototype it grew from, in one interleaved run:

python -m tests.benchmark_prototype ../shared/prototypes/fast_conv.py
"""

import importlib.util
import sys
from contextlib import contextmanager, nullcontext
from unittest import mock

import utils  # isort: skip  (before MegEngine: it sets the process environment)

import megengine.functional as F
from megengine.optimizer import SGD

from models import cpu, layers
from training import benchmark, optimizer


def prototype_context(path):
    spec = importlib.util.spec_from_file_location("prototype", path)
    prototype = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prototype)

    def conv2d(x, weight, stride, padding, groups):
        return prototype.FastConv2dV2(stride[0], padding[0], groups)(x, weight)

    @contextmanager
    def context():
        with (
            mock.patch.object(cpu, "conv2d", conv2d),
            mock.patch.object(cpu, "relu", F.relu),
            mock.patch.object(layers.BatchNorm2d, "forward", prototype.FastBN.forward),
            mock.patch.object(optimizer, "SGD", SGD),
        ):
            yield

    return context


def main():
    utils.set_process_environment()
    variants = {"prototype": prototype_context(sys.argv[1]), "ours": nullcontext}
    for size, batch in ((64, 16), (32, 64)):
        point = benchmark.Point("RepVGGA0", size, batch)
        seconds = benchmark.seconds_per_step(point, 5, variants)
        for row in benchmark.summary(point, seconds):
            print(
                f"{point}: {row['variant']:9} {row['seconds']:.3f} s, "
                f"{row['images_per_second']:.1f} images/s, {row['speedup']:.2f} x prototype"
            )


if __name__ == "__main__":
    main()
