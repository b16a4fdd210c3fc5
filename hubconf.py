"""Entry points for megengine.hub: every architecture, its name in lower case with "_" for "-".

import megengine.hub
net = megengine.hub.load("OWNER/REPOSITORY", "repvgga0", pretrained="best.pkl")
"""

# Everything that the entry points need is imported here: hub then removes the repository from
# sys.path. They are modules only, because hub lists whatever is callable as an entry point.
import collections.abc as _abc

import models as _models

import megengine.module as _M

import weights as _weights

dependencies = ["megengine", "numpy", "cv2", "requests", "tqdm"]


def _entry_point(arch: str, name: str) -> _abc.Callable[..., _M.Module]:
    def create(
        pretrained: str | None = None,
        num_classes: int | None = None,
        deploy: bool = False,
        entry: str | None = None,
        in_chans: int | None = None,
        stride: int | None = None,
    ) -> _M.Module:
        numbers = {"in_chans": in_chans, "stride": stride}
        if pretrained is None or pretrained is False:
            given = {name: number for name, number in numbers.items() if number is not None}
            classes = 1000 if num_classes is None else num_classes
            return _models.create(arch, classes, deploy, **given)
        return _weights.load(pretrained, arch, num_classes, deploy, entry=entry, **numbers)

    create.__name__ = name
    create.__doc__ = f"""Return {arch}, in training mode.

    Args:
        pretrained: a checkpoint: a file, a folder, an http(s) URL or the name of published weights
            such as "basecls:repvgg_a0", in this project's layout or any that
            convert_pretrained_weight.py reads. None for random weights.
        num_classes: number of classes, which must be the checkpoint's (default: the checkpoint's;
            without one, 1000).
        deploy: True for the deploy form, to which a train-form checkpoint is fused.
        entry: set of weights to take from a file of several, such as "state_dict_ema".
        in_chans: number of channels of the images, to which the first kernels of a checkpoint for
            colour images are converted (default: the checkpoint's; without one, 3).
        stride: total stride, which must be the checkpoint's: 8, 16 or 32 (default: the
            checkpoint's; without one, 32).

    Raises utils.UserError when the file is missing or damaged, or holds another network.
    """
    return create


for _arch in _models.list_models():
    _name = _arch.lower().replace("-", "_")
    globals()[_name] = _entry_point(_arch, _name)
del _entry_point
