#!/usr/bin/env python
"""Quantize a trained network to int8, and write it as an ONNX file with a report.

The network is fused and its layers are equalized, which changes no bit of the float network. Then
activations are clipped, weights are rounded and biases are corrected, so that each layer keeps its
mean output. A few images without labels suffice for calibration. With --data, the accuracy is
measured on other images. A network trained by train.py --qat is not calibrated: the file gets the
ranges and weights of its training.

For a calibrated network, a chart (.png, beside the file) shows the signal-to-quantization-noise
ratio (SQNR) of every layer.

With --max-drop or --min-sqnr, as few layers as possible are kept in float to stay within that
limit. They are chosen by measurements. If it cannot be kept, nothing is written and the exit status
is 1.
"""

from __future__ import annotations

import utils
from benchmarks import record
from deployment.int8 import flags


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, quantize, print and record the results; return the exit status."""
    args = flags.parse(__doc__, argv, record.add_argument)
    # MegEngine and ONNX take a second, which --help need not
    from models import environment

    environment.hide_unused_gpus()
    environment.return_freed_memory()
    from benchmarks.inference import latency
    from deployment.int8 import quantization

    outcome = quantization.run(args, latency.of_files)
    if outcome is None:
        return 1
    print(utils.json_text(outcome.result) if args.json else outcome.text)
    if args.record:
        about = {key: value for key, value in outcome.result.items() if key != "networks"}
        record.write(args.record, outcome.result["networks"], about)
    return 0


if __name__ == "__main__":
    utils.run(main)
