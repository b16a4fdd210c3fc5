#!/usr/bin/env python
"""Export a network as an ONNX or .mge file, and check the file by running it.

The network is fused first. onnxruntime or MegEngine's own runtime runs the file, whose logits must
equal the live network's (relative error at most 1e-5) with the same best classes; otherwise no file
is written.

With --fold-normalization, the file takes raw pixels, float32 from 0 to 255. 1/std is folded into
the first convolution. The mean is subtracted by one addition before it, not folded into its bias,
because a normalized image is padded with zeros, which correspond to the mean in raw pixels: this
way the borders are exact too.
"""

from __future__ import annotations

import utils
from deployment import export_flags


def main(argv: list[str] | None = None) -> int:
    """Parse the arguments, export, and print the report; return the exit status."""
    args = export_flags.parse(__doc__, argv)
    # MegEngine takes a second, which --help need not
    from models import environment

    environment.hide_unused_gpus()
    environment.return_freed_memory()
    from deployment import exporting

    outcome = exporting.run(args)
    print(utils.json_text(outcome.result) if args.json else outcome.text)
    return 0


if __name__ == "__main__":
    utils.run(main)
