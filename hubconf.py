"""Entry points for megengine.hub: every architecture, under its name in lower case, "_" for "-".

import megengine.hub
net = megengine.hub.load("OWNER/REPOSITORY", "repvgga0", pretrained="best.pkl")
"""

# All of the project that loading needs: hub takes the repository off sys.path afterwards.
import models as _models

import weights as _weights

dependencies = ["megengine", "numpy", "cv2", "requests", "tqdm"]


def _entry_point(arch, name):
    def create(pretrained=None, num_classes=1000, deploy=False):
        if pretrained is None:
            return _models.create(arch, num_classes, deploy=deploy)
        return _weights.load(pretrained, arch, num_classes, deploy)

    create.__name__ = name
    create.__doc__ = f"""{arch}, in training mode.

    Args:
        pretrained: a checkpoint: a file or an http(s) URL, in this project's layout or any that
            convert_pretrained_weight.py reads. None for random weights.
        num_classes: length of the logits; must be the checkpoint's.
        deploy: the fused form; a train-form checkpoint is fused.
    """
    return create


for _arch in _models.list_models():
    _name = _arch.lower().replace("-", "_")
    globals()[_name] = _entry_point(_arch, _name)
del _entry_point  # hub lists whatever is callable
