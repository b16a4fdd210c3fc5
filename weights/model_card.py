"""The model card, README.md, of a network that is exported for the Hugging Face hub."""

from __future__ import annotations

import csv
import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from . import catalog
from .checkpoint import OURS, Checkpoint

_FILL_IN = "(fill in)"
_HUB_LICENCES = {"Apache-2.0": "apache-2.0", "MIT": "mit", "Apple's own": "other"}
# of run.json, in this order, where a run has them
_ARGUMENTS = ("data", "epochs", "batch_size", "lr", "optimizer", "recipe", "pretrained", "teacher")

_CARD = """\
---
{front_matter}library_name: timm
pipeline_tag: image-classification
tags:
- image-classification
- timm
---
# {name}

{arch}, a re-parameterized ConvNet in train form: each block has several branches, which
`timm.utils.reparameterize_model` fuses into one convolution. {parameters:,} parameters,
{classes} classes, RGB images of {size} px.

- **Weights**: {weights}
- **Training**: {training}
- **Accuracy**: {accuracy}
- **Licence**: {licence}

## Preprocessing

{preprocessing}

`config.json` has these values in timm's words, for pixels from 0 to 1.

## Use

```python
import timm

model = timm.create_model("local-dir:DIR", pretrained=True).eval()  # or "hf-hub:OWNER/NAME"
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
logits = model(transform(image)[None])  # image: a PIL.Image in RGB
```
"""


def write(checkpoint: Checkpoint, published: catalog.Published) -> str:
    """Return the card of a checkpoint in train form, for RGB images.

    `published` is what timm publishes of that architecture. What is not known is left to fill in.
    """
    said = checkpoint.preprocessing
    foreign = checkpoint.source != OURS
    licence = _licence(checkpoint)
    run = _run_record(checkpoint)
    values = {
        "colour order": said.color,
        "mean, std": f"{_numbers(said.mean)}; {_numbers(said.std)} (of pixels from 0 to 255)",
        "size": f"{said.size} px, the centre of an image whose short side is {said.short_side} px",
        "resizing": f"{said.interpolation}, by {said.resize_backend}",
    }
    return _CARD.format(
        front_matter=f"license: {_HUB_LICENCES[licence]}\n" if licence in _HUB_LICENCES else "",
        name=published.name,
        arch=checkpoint.arch,
        parameters=sum(
            value.size for key, value in checkpoint.state_dict.items() if ".running_" not in key
        ),
        classes=checkpoint.num_classes,
        size=said.size,
        weights=f"converted from a checkpoint in the layout of {checkpoint.source}"
        if foreign
        else "trained with MegEngine"
        if "training" in run
        else _FILL_IN,
        training=run.get("training", _FILL_IN),
        accuracy=run.get("accuracy", _FILL_IN),
        licence=_FILL_IN
        if licence == "unknown"
        else f"{licence}, if these are the weights that the owner of that layout publishes",
        preprocessing="\n".join(f"- {name}: {value}" for name, value in values.items()),
    )


def _licence(checkpoint: Checkpoint) -> str:
    """Return the licence of the published weights, which have the 1,000 classes of ImageNet."""
    if checkpoint.source == OURS or checkpoint.num_classes != 1000:
        return "unknown"
    published = catalog.published(checkpoint.source.partition(" ")[0], checkpoint.arch)
    return "unknown" if published is None else published.licence


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:g}" for value in values)


def _without_folders(value: Any) -> str:
    """Return a value as text, of a path its last part: a card is published, and folders are not."""
    text = str(value)
    return text if "://" in text else re.sub(r"[^\s:]*/(?=[^\s/])", "", text.rstrip("/"))


def _run_record(checkpoint: Checkpoint) -> dict[str, str]:
    """Return sentences about the run of train.py whose checkpoint this is, as far as it is one.

    The accuracy is that of best.pkl as it was validated.
    """
    record = {}
    path = Path(checkpoint.path)
    folder = path.parent
    changed = any(origin.startswith("--") for origin in checkpoint.origins.values())
    # weights from elsewhere have no such files beside them
    with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        arguments = json.loads((folder / "run.json").read_text())["arguments"]
        given = {name: arguments.get(name) for name in _ARGUMENTS}
        record["training"] = ", ".join(
            f"{name.replace('_', ' ')} {_without_folders(value)}"
            for name, value in given.items()
            if value not in (None, "None")
        )
        changed |= "in_chans" in checkpoint.options and not arguments.get("in_chans")
        # after --qat it was validated in int8, and its ranges are not exported
        if path.name != "best.pkl" or changed or checkpoint.activation_ranges:
            return record
        with open(folder / "metrics.csv", newline="") as file:
            rows = [*csv.DictReader(file)]
        which = "ema" if rows[0].get("ema_top1") else "val"  # best.pkl has the averaged weights
        best = max(rows, key=lambda row: float(row[f"{which}_top1"]))
        top1, top5 = (float(best[f"{which}_{name}"]) for name in ("top1", "top5"))
        record["accuracy"] = (
            f"top-1 {top1:.2f} %, top-5 {top5:.2f} % on the validation images, after epoch "
            f"{best['epoch']}"
        )
    return record
