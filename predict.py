#!/usr/bin/env python
"""Classify images: files, folders and archives of images, and URLs.

The network is a checkpoint in any layout that convert_pretrained_weight.py reads, or an .onnx or
.mge file; without --model, the newest best.pkl under checkpoints/. An .onnx file that export.py did
not write needs --color, --mean, --std and --class-names.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import cv2
import numpy as np
from tqdm import tqdm

import cli
import utils

if TYPE_CHECKING:  # MegEngine takes a second to import, which --help need not
    from data.decoding import ImageFile
    from deployment.classification import Result
    from deployment.network import Network

EXAMPLES = """\
  python predict.py dog.jpg photos/ https://example.com/cat.png --model a0.pkl
  python predict.py photos/ --model RepVGGA0.onnx --top 3 --json
  python predict.py photos/ --model best.pkl --csv classes.csv --top 1
  python predict.py photos/ --model best.pkl --save labelled
  python predict.py dog.jpg --model resnet.onnx --color rgb --mean 0.485 0.456 0.406 \\
      --std 0.229 0.224 0.225 --class-names imagenet.txt
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = cli.ArgumentParser(__doc__, EXAMPLES)
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="image file, folder, tar or zip of images, or http(s) URL",
    )
    cli.add_flags(parser, "--arch", "--model", "--entry", "--size")
    cli.add_preprocessing_flags(parser)
    output = parser.add_argument_group("output")
    output.add_argument(
        "--top", type=cli.COUNT, default=5, metavar="N", help="number of classes to show per image"
    )
    form = output.add_mutually_exclusive_group()
    cli.add_flags(form, "--json")
    form.add_argument(
        "--csv",
        type=cli.output_file,
        metavar="FILE",
        help="write the results to this file as a table with a line for each image",
    )
    output.add_argument(
        "--save", metavar="DIR", help="folder to write each image to with its labels drawn on it"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    from models import environment

    from data import sources
    from deployment import network
    from weights import catalog, newest, stated_preprocessing

    environment.hide_unused_gpus()
    environment.tune_for_computing()
    path = catalog.locate(args.model) if args.model else newest.best()
    stated = stated_preprocessing.of_flags(args, args.size)
    net = network.load(path, args.arch, args.entry, stated)
    for line in stated_preprocessing.lines(net.preprocessing, net.classes, net.origins):
        print(line, file=sys.stderr)
    names = list(sources.expand(args.images))
    for source in (path, args.class_names, *args.images, *names) if args.csv else ():
        utils.assert_other_file(source, args.csv, "--csv")
    if args.save:
        _assert_no_picture_is_replaced(names, args.save)
    with closing(reported(net, names, args)) as results:
        if args.csv:
            bad = write_csv(Path(args.csv), results, min(args.top, net.num_classes))
            print(f"{len(names) - bad} of {len(names)} images classified: {args.csv}")
        elif args.json:
            rows = [_as_json(result) for result in results]
            bad = sum("error" in row for row in rows)
            print(utils.json_text({"model": str(path), "arch": net.arch, "images": rows}))
        else:
            bad = 0
            for result in results:
                bad += result.error is not None
                if not result.error:
                    lines = [utils.shown(result.name), *map(_line, result.predictions)]
                    tqdm.write("\n".join(lines))
    return 2 if bad else 0


def _picture(folder: str, stem: str) -> Path:
    """Return the file for the labelled picture of an image."""
    return Path(folder, f"{stem}-labelled.jpg")


def _assert_no_picture_is_replaced(names: Sequence[ImageFile], folder: str) -> None:
    """Raise UserError where a labelled picture would replace one of the images."""
    from data import sources

    read = {os.path.realpath(name) for name in names if isinstance(name, str | Path)}
    for stem in sources.stems(names):
        if os.path.realpath(file := _picture(folder, stem)) in read:
            raise utils.UserError(
                f"{file} is one of the images to classify; give another folder by --save"
            )


def reported(
    net: Network, names: Sequence[ImageFile], args: argparse.Namespace
) -> Iterator[Result]:
    """Yield what became of each image; show progress and errors, and save pictures for --save."""
    from data import caption, quiet, sources
    from deployment.classification import BATCH, classify

    stems = sources.stems(names)
    few = True if len(names) <= BATCH else None  # None: no bar where there is no terminal
    with (
        closing(classify(net, names, args.top, keep_images=bool(args.save))) as results,
        tqdm(total=len(names), unit="image", leave=False, disable=few) as bar,
    ):
        for result, stem in zip(results, stems, strict=True):
            bar.update()
            if result.error:
                with quiet.audible(), tqdm.external_write_mode(sys.stderr):
                    utils.fail(result.error)
            elif args.save:
                rows = result.predictions
                lines = [f"{row['probability']:.1%} {row['name']}" for row in rows]
                picture = caption.labelled(result.image, lines)
                _save(picture, _picture(args.save, stem))
            yield result


def write_csv(path: Path, results: Iterable[Result], count: int) -> int:
    """Write a table with the `count` best classes of each image; return the number of errors.

    Raises UserError when the file cannot be written.
    """
    columns = ("class", "name", "probability")
    header = ["image", *(f"{column}{n}" for n in range(1, count + 1) for column in columns)]
    bad = 0

    def write(file: BinaryIO) -> None:
        nonlocal bad
        text = io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True)
        table = csv.writer(text)
        table.writerow([*header, "error"])
        for result in results:
            bad += result.error is not None
            best = [row[column] for row in result.predictions for column in columns]
            empty = [""] * (len(header) - 1 - len(best))
            table.writerow([utils.shown(result.name), *best, *empty, result.error or ""])
        text.detach()

    utils.write_atomically(path, write)
    return bad


def _as_json(result: Result) -> dict[str, Any]:
    answer = {"error": result.error} if result.error else {"predictions": result.predictions}
    return {"image": utils.shown(result.name), **answer}


def _line(row: dict[str, Any]) -> str:
    return f"  {row['probability']:7.2%}  {row['class']:4}  {utils.shown(row['name'])}"


def _save(picture: np.ndarray, path: Path) -> None:
    content = cv2.imencode(".jpg", picture)[1].tobytes()
    utils.write_atomically(path, lambda file: file.write(content))


if __name__ == "__main__":
    utils.run(main)
