#!/usr/bin/env python
"""Classify images: files, folders of images and URLs.

The network is a checkpoint in any layout that convert_pretrained_weight.py reads, or an .onnx or
.mge file of export.py; without --model, the newest best.pkl under checkpoints/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

import cli
import utils

if TYPE_CHECKING:  # MegEngine takes a second to import, which --help need not
    from deployment.network import Network

EXAMPLES = """\
  python predict.py dog.jpg photos/ https://example.com/cat.png --model a0.pkl
  python predict.py photos/ --model RepVGGA0.onnx --top 3 --json
  python predict.py photos/ --model best.pkl --save labelled
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE", help="image file, folder of images or http(s) URL"
    )
    cli.add_flags(parser, "--arch")
    cli.add_flags(
        parser,
        "--model",
        help="checkpoint, .onnx or .mge file (default: the newest best.pkl under checkpoints/)",
    )
    parser.add_argument(
        "--top", type=cli.COUNT, default=5, metavar="N", help="number of classes to show per image"
    )
    cli.add_flags(parser, "--json")
    parser.add_argument(
        "--save", metavar="DIR", help="folder to write each image to with its labels drawn on it"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    from models import environment

    from data import caption, sources
    from data.decoding import BadImageError
    from deployment import network
    from weights import catalog, checkpoint

    environment.hide_unsupported_gpu()
    environment.tune_for_training()
    path = catalog.locate(args.model) if args.model else checkpoint.newest_best()
    net = network.load(path, args.arch)
    names = list(sources.expand(args.images))
    results = []
    for name, stem in zip(names, sources.stems(names), strict=True):
        try:
            image = sources.read(name)
        except BadImageError as error:
            results.append({"image": utils.shown(name), "error": str(error)})
            utils.fail(str(error))
            continue
        best = _best(net, image, args.top)
        results.append({"image": utils.shown(name), "predictions": best})
        if not args.json:
            print(utils.shown(name))
            for row in best:
                print(f"  {row['probability']:7.2%}  {row['class']:4}  {row['name']}")
        if args.save:
            lines = [f"{row['probability']:.1%} {row['name']}" for row in best]
            _save(caption.labelled(image, lines), Path(args.save, f"{stem}-labelled.jpg"))
    if args.json:
        print(json.dumps({"model": str(path), "arch": net.arch, "images": results}, indent=2))
    return 2 if any("error" in result for result in results) else 0


def _best(net: Network, image: np.ndarray, count: int) -> list[dict]:
    probabilities = net.probabilities(image)
    return [
        {"class": int(i), "name": net.classes[i], "probability": float(probabilities[i])}
        for i in np.argsort(-probabilities, kind="stable")[:count]
    ]


def _save(picture: np.ndarray, path: Path) -> None:
    content = cv2.imencode(".jpg", picture)[1].tobytes()
    utils.write_atomically(path, lambda file: file.write(content))


if __name__ == "__main__":
    utils.run(main)
