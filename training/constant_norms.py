"""The warning about batch norms that see one number per channel, and so give a constant."""

from __future__ import annotations

import megengine as mge
import megengine.module as M
import numpy as np

from .settings import Settings


def warning(model: M.Module, settings: Settings, size: int, workers: int) -> str | None:
    """Return a warning if batch norms would see one number per channel, else None.

    Minus its mean, one number is zero whatever it was, so that nothing before it learns.

    Args:
        model: the network in train form; it is left as it is.
        settings: settings of the run.
        size: side of the images in pixels.
        workers: number of processes that share a batch.
    """
    shared = workers if settings.sync_bn else 1  # parts whose statistics are taken together
    if settings.freeze or settings.qat:  # statistics are kept
        return None
    if settings.batch_size // (workers * settings.accumulate) * shared > 1:
        return None
    constant: list[str] = []
    names = {module: name for name, module in model.named_modules()}

    def look(module: M.Module, inputs: tuple, _output: mge.Tensor) -> None:
        if inputs[0].size == inputs[0].shape[1]:  # [1, C, 1, 1]
            constant.append(names[module])

    norms = [module for module in names if isinstance(module, M.BatchNorm2d)]
    hooks = [norm.register_forward_hook(look) for norm in norms]
    training = model.training
    model.eval()
    model(mge.Tensor(np.zeros((1, model.in_chans, size, size), np.float32)))
    model.train(training)
    for hook in hooks:
        hook.remove()
    if not constant:
        return None
    return (
        f"warning: {len(constant)} batch norms, the first of them {constant[0]}, see a single "
        "number per channel (one image with a map of 1x1), so that their output is constant and "
        "the layers before them do not learn; use a larger --batch-size, a smaller --accumulate or "
        "a larger --size"
    )
