"""Write docs/results/networks.json, the sizes and the reported accuracy of all networks.

Run by `make docs`.
"""

import json
from importlib.metadata import version
from typing import Any

import models
from models import init

import utils
from weights import catalog

FILE = utils.ROOT / "docs" / "results" / "networks.json"


def rows() -> list[dict[str, Any]]:
    """Return a row for each network: sizes counted from its modules, accuracy as reported."""
    figures = []
    for name in models.list_models():
        if name.endswith("-qa"):  # nearly all of it is that of the network without the suffix
            continue
        with init.uninitialized():
            train, deploy = models.create(name), models.create(name, deploy=True)
        before, after = models.profile(train), models.profile(deploy)
        entries = [entry for entry in catalog.PUBLISHED if entry.arch == name]
        own = next((e for e in entries if e.top1 and e.source not in ("timm", "basecls")), None)
        figures.append(
            {
                "name": name,
                "train_parameters": round(before.parameters / 1e6, 2),
                "deploy_parameters": round(after.parameters / 1e6, 2),
                "train_macs": round(before.macs / 1e9, 2),
                "deploy_macs": round(after.macs / 1e9, 2),
                "reported_top1": own and own.top1,
                "reported_by": own and own.reported_by,
                "checkpoints": ", ".join(dict.fromkeys(entry.source for entry in entries)),
            }
        )
    return figures


def record() -> str:
    """Return the text of the file."""
    contents = {
        "command": "make docs",
        "machine": "any machine: sizes in millions and billions are counted from the modules",
        "date": None,
        "versions": {"megengine": version("megengine")},
        "figures": rows(),
    }
    return json.dumps(contents, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    FILE.write_text(record())
