"""A process with one runtime, which runs a network for given times and answers with latencies.

`python -m benchmarks.inference.worker RUNTIME SOURCE THREADS STREAMS BATCH CHANNELS SIZE LIMIT`
prints {} after its warm-up. It answers each line of input, a number of seconds, by a line of JSON
with the "latencies" of the passes of all streams and the "elapsed" time of the turn, in seconds.
The process ends when its input ends.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import numpy as np

from benchmarks.inference.runtimes import LOAD, Runner
from deployment.child_process import end_at_once_on_exit, time_limit

WARM_UP = 3  # passes of each stream before the first turn
_LEAST = 3  # passes of each stream in a turn, however long they take


def turn(
    runners: list[Runner], images: np.ndarray, seconds: float, pool: ThreadPoolExecutor
) -> dict:
    """Run passes for `seconds`, each stream in its own thread, and return their times.

    The first pass is not counted, as another process has used the processor's caches before.
    """
    begin = Barrier(len(runners))

    def stream(run: Runner) -> list[float]:
        run(images)
        begin.wait()
        times = [time.perf_counter()]
        while len(times) <= _LEAST or times[-1] - times[0] < seconds:
            run(images)
            times.append(time.perf_counter())
        return times

    # MegEngine itself runs only in the thread that loaded the network
    times = list(pool.map(stream, runners) if len(runners) > 1 else map(stream, runners))
    return {
        "latencies": np.concatenate([np.diff(one) for one in times]).tolist(),
        "elapsed": max(one[-1] for one in times) - min(one[0] for one in times),
    }


def main() -> None:
    """Answer on the standard output of the start; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    runtime, source, *numbers, limit = sys.argv[1:]
    threads, streams, batch, channels, size = map(int, numbers)
    images = np.random.default_rng(0).standard_normal((batch, channels, size, size), np.float32)
    with time_limit(float(limit)):
        runners = LOAD[runtime](source, threads, streams)
        end_at_once_on_exit()
        for run in runners:
            for _ in range(WARM_UP):
                run(images)
    print("{}", file=answers, flush=True)
    with ThreadPoolExecutor(streams) as pool:
        for line in sys.stdin:
            with time_limit(float(line) + float(limit)):
                answer = turn(runners, images, float(line), pool)
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
