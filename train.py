#!/usr/bin/env python
"""Train a re-parameterizable network.

Without --data it trains on the handwritten digits that come with scikit-learn, so that everything
can be tried at once. Results go to SAVE/ARCH/TAG: latest.pkl (to resume from), best.pkl (to test
and to deploy), metrics.csv, curves.png, log.txt, run.json and events for TensorBoard.

--size, --weight-decay, --drop-path, --auto-augment and the numbers of the augmentation may change
by epoch: 160@0,192@38 is 160 from the start and 192 after 38 epochs. Those that take fractions may
also follow half a cosine: 1e-4..1e-5 falls from 1e-4 to 1e-5.
"""

from __future__ import annotations

from functools import partial

import utils
from training import signals


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, and train or print what they ask for; returns the exit status."""
    with signals.StopSignal():  # also while all this is imported
        from training import options, recipe

        args = options.parse(__doc__, argv)
        if args.show_config:
            print("\n".join(recipe.lines(args)))
            return 0
        # MegEngine takes a second, which --help and a wrong flag need not wait for
        from models import environment, list_models

        if args.list_archs:
            print("\n".join(list_models()))
            return 0
        from training import gpu, run
        from training.distributed import launch

        launch.refuse_unsupported_gpu(args.ngpus, args.world_size)
        gpu.check(args.dtr)
        environment.tune_for_computing()
        return launch.run(
            partial(run.run, args),
            args.ngpus,
            launch.Hosts(args.world_size, args.rank, args.dist_addr, args.dist_port),
            args.worker_timeout,
            advice="; go on from the last checkpoint with --resume auto",
        )


if __name__ == "__main__":
    utils.run(main)
