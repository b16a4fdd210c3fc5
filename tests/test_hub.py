"""hubconf.py through MegEngine's own hub, from another working directory."""

import hashlib
import os
import subprocess
import sys

import models

import megengine as mge
import numpy as np
import pytest

from data.transforms import Preprocessing
from tests.support import ROOT
from weights import checkpoint

# hub keeps a repository it has fetched under its version and the hash of this
REPOSITORY = "_".join(
    (*mge.__version__.split("."), hashlib.sha1(b"nobody_reparam_main").hexdigest()[:16])
)

SCRIPT = """
import sys
import megengine as mge
import megengine.hub as hub
import numpy as np

where = {"repo_info": "nobody/reparam:main", "use_cache": True}
names = hub.list(**where)
assert "repvgga0" in names and "repvgga0_qa" in names and "repvggplusl2pse" in names, names
assert all(name.startswith(("rep", "mobileone", "fastvit")) for name in names), names
assert "pretrained: a checkpoint" in hub.help(entry="repvgga0", **where)
net = hub.load(entry="repvgga0", pretrained=sys.argv[1], deploy=True, **where)
assert not any("reparam" in path for path in sys.path), sys.path
net.eval()
np.save(sys.argv[2], net(mge.Tensor(np.load(sys.argv[3]))).numpy())
fresh = hub.load(entry="repvgga0", num_classes=2, stride=8, **where)
assert (fresh.num_classes, fresh.in_chans, fresh.options) == (2, 3, {"stride": 8})
for wrong, said in (({"in_chans": 0}, "in_chans is 0"), ({"num_classes": 0}, "num_classes"),
                    ({"pretrained": sys.argv[1], "num_classes": 7, "stride": 8}, "stride of 32")):
    try:
        hub.load(entry="repvgga0", **wrong, **where)
    except Exception as error:
        assert said in str(error), error
    else:
        raise AssertionError(wrong)
"""


@pytest.fixture
def hub_home(tmp_path):
    home = tmp_path / "home"
    (home / "hub").mkdir(parents=True)
    (home / "hub" / REPOSITORY).symlink_to(ROOT)
    return home


def test_list_help_and_load(hub_home, tmp_path, images):
    model = models.create("RepVGGA0", num_classes=7)
    path = tmp_path / "best.pkl"
    checkpoint.save(checkpoint.of_model(model, Preprocessing()), path)
    np.save(tmp_path / "images.npy", images)
    arguments = [str(path), str(tmp_path / "logits.npy"), str(tmp_path / "images.npy")]
    environment = {**os.environ, "MGE_HOME": str(hub_home)}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    model.eval()
    expected = model(mge.Tensor(images)).numpy()
    error = np.abs(np.load(tmp_path / "logits.npy") - expected).max()
    assert error <= 1e-5 * np.abs(expected).max()
