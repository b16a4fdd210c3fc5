"""Write docs/results/networks.json, the sizes and the reported accuracy of all networks.

Written by `make docs-update`.
"""

import json
from importlib.metadata import version
from typing import Any

import models
from models import init

import utils
from weights import catalog

FILE = utils.ROOT / "docs" / "results" / "networks.json"


def names() -> list[str]:
    """Return the networks that have a row; nearly all of a "-qa" one is that of its twin."""
    return [name for name in models.list_models() if not name.endswith("-qa")]


def published(name: str) -> dict[str, Any]:
    """Return what is reported for a network, and whose checkpoints there are."""
    entries = [e for e in catalog.PUBLISHED if e.arch == name]
    imagenet = (e for e in entries if e.data == "ImageNet" and e.top1)
    own = next((e for e in imagenet if e.source not in ("timm", "basecls")), None)
    return {
        "reported_top1": own and own.top1,
        "reported_by": own and own.reported_by,
        "checkpoints": ", ".join(dict.fromkeys(entry.source for entry in entries)),
    }


def rows() -> list[dict[str, Any]]:
    """Return a row for each network: sizes counted from its modules, accuracy as reported."""
    figures = []
    for name in names():
        with init.uninitialized():
            train, deploy = models.create(name), models.create(name, deploy=True)
        before, after = models.profile(train), models.profile(deploy)
        figures.append(
            {
                "name": name,
                "train_parameters": round(before.parameters / 1e6, 2),
                "deploy_parameters": round(after.parameters / 1e6, 2),
                "train_macs": round(before.macs / 1e9, 2),
                "deploy_macs": round(after.macs / 1e9, 2),
                **published(name),
            }
        )
    return figures


def record() -> str:
    """Return the text of the file."""
    contents = {
        "command": "make docs-update",
        "machine": "any machine: sizes in millions and billions are counted from the modules",
        "date": None,
        "versions": {"megengine": version("megengine")},
        "figures": rows(),
    }
    return json.dumps(contents, indent=1, ensure_ascii=False) + "\n"
