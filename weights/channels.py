"""Networks for another number of input channels than three: converting the first kernels."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .checkpoint import Checkpoint, CheckpointError
from .keymap import Tensors
from .state import shapes_of


def with_input_channels(checkpoint: Checkpoint, in_chans: int) -> tuple[Checkpoint, str | None]:
    """Return a checkpoint for images of `in_chans` channels, and a sentence about what was done.

    The kernels that read the image are converted as timm does: for one channel they are summed
    over the three colours; for more they are repeated and multiplied by 3 / in_chans. A checkpoint
    that has as many channels is returned as it is, without a sentence.

    Raises CheckpointError for a checkpoint that has neither three channels nor `in_chans`.
    """
    present = checkpoint.options.get("in_chans", 3)
    if in_chans == present:
        return checkpoint, None
    if present != 3:
        raise CheckpointError(
            f"{checkpoint.path} takes images of {present} channels, and only the kernels for 3 can "
            f"be converted to {in_chans}; leave out --in-chans or give the file it was made from"
        )
    what = checkpoint.arch, checkpoint.num_classes or 1000, checkpoint.form
    options = {**checkpoint.options, "in_chans": in_chans}
    before, after = shapes_of(*what, **checkpoint.options), shapes_of(*what, **options)
    names = [name for name in before if before[name] != after[name]]
    kernels: Tensors = {
        name: _converted(checkpoint.state_dict[name].reshape(before[name]), in_chans)
        for name in names
    }
    how = "summed over the colours" if in_chans == 1 else f"repeated and scaled by 3/{in_chans}"
    if checkpoint.activation_ranges is not None:
        how += "; the activation ranges of the quantization-aware training are left out"
    converted = replace(
        checkpoint,
        options=options,
        state_dict={**checkpoint.state_dict, **kernels},
        preprocessing=replace(checkpoint.preprocessing, channels=in_chans),
        training=None,
        activation_ranges=None,
    )
    return converted, f"{in_chans} channel{'s' * (in_chans > 1)}: {', '.join(names)} {how}"


def _converted(kernel: np.ndarray, in_chans: int) -> np.ndarray:
    """Return a kernel [O, 3, h, w] for `in_chans` channels: [O, in_chans, h, w]."""
    if in_chans == 1:
        return kernel.sum(axis=1, keepdims=True)
    return kernel[:, np.arange(in_chans) % 3] * kernel.dtype.type(3 / in_chans)
