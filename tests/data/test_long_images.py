"""Very long images cost no more memory than their pixels, and look the same."""

import resource
import subprocess
import sys

import cv2
import numpy as np
import pytest

from data.jpeg import Box
from data.long_images import middle
from data.transforms import Preprocessing
from tests.support import ROOT


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("low", [1, 2, 3, 7, 8, 15])
def test_the_centre_crop_is_that_of_the_whole(rng, low, interpolation, monkeypatch):
    preprocessing = Preprocessing(size=14, interpolation=interpolation)
    assert preprocessing.short_side == 16
    for length in (2401, 3000):
        wide = rng.integers(0, 256, (low, length, 3), np.uint8)
        for image in (wide, np.ascontiguousarray(wide.transpose(1, 0, 2))):
            whole = preprocessing.evaluation_crop(image)
            top, left, height, width = middle(*image.shape[:2], 16, longest=2000)
            assert max(height, width) < length and min(height, width) == low
            part = preprocessing.evaluation_crop(image[top : top + height, left : left + width])
            difference = abs(part.astype(int) - whole).max()
            assert difference <= (0 if 16 % low == 0 else 2)


def test_usual_images_are_left_whole():
    for height, width in ((500, 375), (1, 1), (100, 12800), (300, 90_000), (40, 5000)):
        assert middle(height, width, 256) == Box(0, 0, height, width)
    box = middle(20_000, 3, 256)
    assert box.height < 500 and box.top * 2 + box.height == 20_000


CODE = """
import resource, sys
from data.decoding import decode
from data.transforms import Preprocessing
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for file in sys.argv[1:]:
    assert Preprocessing().evaluation(decode(file)).shape == (3, 224, 224)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_they_need_little_memory(tmp_path, rng):
    wide = rng.integers(0, 256, (1, 20_000, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "wide.png"), wide)
    cv2.imwrite(str(tmp_path / "high.png"), wide.transpose(1, 0, 2))
    files = [str(tmp_path / name) for name in ("wide.png", "high.png")]
    command = [sys.executable, "-c", CODE, *files]
    limit = 8 << 30  # bytes of address space; without the cut it took 4.5 GB of memory

    answer = subprocess.run(
        command,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    assert int(answer.stdout) < 200_000  # kB
