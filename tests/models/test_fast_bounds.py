"""models/cpu/fast: nothing is written outside of the memory that it is meant for."""

from contextlib import nullcontext

from models import cpu, layers

import numpy as np
import pytest

from tests.models.test_fast import CONVOLUTIONS, NETWORKS, gradients, needs_bfloat16, program

from models.cpu.fast import cache  # isort: skip  (test_fast skips where it is not installed)
from models.cpu.fast import program as programs  # isort: skip
from models.cpu.fast.memory import aligned  # isort: skip

GAP = 1 << 15  # floats behind each buffer
UNTOUCHED = 12345.0


@pytest.fixture
def gaps(monkeypatch):
    """Keep the buffers of all programs apart, and return the gaps behind them."""
    ends, found = [], []

    def arrange(buffers):
        offset = 0
        for buffer in buffers:
            buffer.offset = offset
            ends.append(offset + buffer.size)
            offset += -(-buffer.size // 16) * 16 + GAP
        return offset

    def in_gaps(floats, alignment):
        memory, start = aligned(floats, alignment)
        first = start - memory.ctypes.data
        values = memory[first : first + 4 * floats].view(np.float32)
        values[:] = UNTOUCHED
        found.extend(values[end : end + GAP] for end in ends)
        ends.clear()
        return memory, start

    cache._recent.clear()
    monkeypatch.setattr(programs, "arrange", arrange)
    monkeypatch.setattr(programs, "aligned", in_gaps)
    yield found
    cache._recent.clear()


@pytest.mark.parametrize("bfloat16", [False, pytest.param(True, marks=needs_bfloat16)])
@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions_keep_to_their_memory(case, bfloat16, gaps, rng):
    n, c, o, size, kernel, stride, padding, groups = case
    module = layers.Conv2d(c, o, kernel, stride, padding, groups=groups, bias=False)
    x = rng.standard_normal((n, c, *size), dtype=np.float32)
    y = tuple((side + 2 * padding - kernel) // stride + 1 for side in size)
    dy = rng.standard_normal((n, o, *y), dtype=np.float32)
    program(module, x, dy, [module.weight], bfloat16)
    assert gaps and all((gap == UNTOUCHED).all() for gap in gaps)


@pytest.mark.parametrize("within", [nullcontext, pytest.param(cpu.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("arch", NETWORKS)
def test_networks_keep_to_their_memory(arch, within, gaps):
    """In images as large as these, oneDNN's jit_1x1 writes behind its scratchpad in the stem."""
    gradients(arch, "fast", size=224, batch=2, within=within)
    assert gaps and all((gap == UNTOUCHED).all() for gap in gaps)
