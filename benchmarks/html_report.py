"""The report of a test as one HTML file that needs nothing else, and the files beside it."""

from __future__ import annotations

import base64
import csv
import html
import json
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Any

import cv2
import numpy as np

import utils
from data.class_names import in_english
from data.datasets import Dataset
from data.transforms import Preprocessing

from . import confusion
from .confusion import Confusion
from .predictions import Predictions, right_classes

MISTAKES, CONFUSIONS = 20, 20  # at most so many are shown
_SIDE = 192  # pixels: longest side of a picture

_COLUMNS = {  # of the table of classes: key -> heading
    "name": "class",
    "images": "images",
    "correct": "right",
    "top1": "top-1, %",
    "top5": "top-5, %",
    "predicted": "predicted",
    "precision": "precision, %",
    "mostly_taken_for": "mostly taken for",
    "times": "times",
}


def write(
    folder: Path,
    title: str,
    facts: dict[str, str],
    results: Sequence[dict[str, Any]],
    dataset: Dataset,
    predictions: Predictions,
    preprocessing: Preprocessing,
    run: Path | None,
) -> Path:
    """Write report.html, and confusion and per_class as CSV and PNG; returns the report's path.

    Args:
        folder: where to; it is made if it is missing.
        title: heading of the report.
        facts: what was tested on what, as name -> text.
        results: rows of test.py, of the network in each form; the first is that of `predictions`.
        dataset: the images.
        predictions: what the network made of them.
        preprocessing: how it sees them.
        run: folder of the training run that the network is from, or None.

    Raises UserError where the folder cannot be written.
    """
    counted = confusion.confusion(dataset, predictions)
    matrix = confusion.matrix_png(counted)
    files = {
        "confusion.csv": confusion.matrix_csv(counted),
        "confusion.png": matrix,
        "per_class.csv": confusion.classes_csv(counted),
        "per_class.png": confusion.classes_png(counted),
    }
    body = [
        _figures(results),
        _table(["", ""], [[name, text] for name, text in facts.items()]),
        _forms(results),
        "<h2>Confusion matrix</h2>",
        f'<img class="chart" alt="Confusion matrix" src="{_data(matrix, "png")}">',
        _confusions(counted),
        "<h2>Classes</h2>",
        _classes(counted),
        "<h2>Most confident mistakes</h2>",
        _mistakes(dataset, predictions, preprocessing),
        *(_training(run) if run is not None else []),
    ]
    page = Template((Path(__file__).parent / "report_template.html").read_text())
    text = page.substitute(title=html.escape(title), body="\n".join(filter(None, body)))
    files["report.html"] = text.encode(errors="escaped")
    make_folder(folder)
    for name, content in files.items():
        utils.write_atomically(folder / name, lambda file, content=content: file.write(content))
    return folder / "report.html"


def make_folder(folder: Path) -> None:
    """Make the folder of a report; raise UserError where that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise utils.UserError(
            f"cannot write to {folder}: {error.strerror}; give another --report"
        ) from None
    utils.assert_writable(folder / "report.html")


def _data(content: bytes, kind: str) -> str:
    """Return the content of an image file as a URL."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


class _Bar(str):
    """A cell of a table that is a bar of so many percent."""


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]], name: str = "") -> str:
    """Return a table of texts and bars; columns of numbers stand at the right."""

    def cell(tag: str, text: str, number: bool) -> str:
        content = html.escape(text)
        if isinstance(text, _Bar):
            return f'<{tag} class=bar><i style="width:{content}%"></i></{tag}>'
        return f"<{tag}{' class=number' if number else ''}>{content}</{tag}>"

    numbers = [rows and all(_is_number(row[i]) for row in rows) for i in range(len(headings))]
    lines = [[("td", text) for text in row] for row in rows]
    if any(headings):
        lines.insert(0, [("th", text) for text in headings])
    text = "\n".join(
        "<tr>"
        + "".join(cell(tag, t, n) for (tag, t), n in zip(line, numbers, strict=True))
        + "</tr>"
        for line in lines
    )
    attributes = f" id={name}" if name else ""
    if not any(headings):  # facts with their names, whose values may be broken anywhere
        attributes += " class=facts"
    return f'<div class="wide"><table{attributes}>\n{text}\n</table></div>'


def _is_number(text: str) -> bool:
    return not text or text.replace(".", "", 1).isdecimal()


def _figures(results: Sequence[dict[str, Any]]) -> str:
    first = results[0]
    return (
        f'<div class="figures"><div><b id="top1">{first["top1"]:.2f} %</b>top-1, '
        f"{first['correct1']} of {first['total']}</div>"
        f'<div><b id="top5">{first["top5"]:.2f} %</b>top-5, {first["correct5"]} of '
        f"{first['total']}</div></div>"
    )


def _forms(results: Sequence[dict[str, Any]]) -> str:
    """Return a table of the forms of the network, if there are several."""
    rows = [[r["form"], f"{r['top1']:.2f}", f"{r['top5']:.2f}"] for r in results]
    return _table(["form", "top-1, %", "top-5, %"], rows) if len(rows) > 1 else ""


def _confusions(counted: Confusion) -> str:
    rows = [[name, other, str(times)] for name, other, times in counted.confusions(CONFUSIONS)]
    heading = (
        '<p class="note">The colour is the percentage of the images of a class; a number, where '
        "there is one, counts images. The most frequent confusions:</p>"
    )
    return heading + _table(["class", "taken for", "images"], rows) if rows else ""


def _classes(counted: Confusion) -> str:
    """Return the table of the classes with a bar for each, the worst first."""
    rows = sorted(counted.rows(), key=lambda row: float(row["top1"] or 101))
    cells = []
    for row in rows:
        texts = [str(row[key]) for key in _COLUMNS]
        cells.append([texts[0], _Bar(row["top1"] or "0"), *texts[1:]])
    headings = list(_COLUMNS.values())
    return _table([headings[0], "", *headings[1:]], cells, "classes")


def _mistakes(dataset: Dataset, predictions: Predictions, preprocessing: Preprocessing) -> str:
    """Return the pictures of the images that were taken most confidently for something else."""
    right, best = right_classes(dataset, predictions), predictions.classes[:, 0]
    wrong = np.flatnonzero(right != best)
    wrong = wrong[np.argsort(-predictions.probabilities[wrong, 0], kind="stable")][:MISTAKES]
    if not len(wrong):
        return '<p class="note">There is none.</p>'
    names = in_english(dataset.classes, len(dataset.classes))
    figures = []
    for i in wrong.tolist():
        picture = preprocessing.evaluation_crop(dataset.image(predictions.images[i]))
        figures.append(
            f'<figure><img alt="" src="{_data(_jpeg(picture), "jpeg")}"><figcaption>'
            f"{html.escape(names[right[i]])}<br><b>{html.escape(names[best[i]])}</b> "
            f"{100 * predictions.probabilities[i, 0]:.1f} %</figcaption></figure>"
        )
    note = '<p class="note">The right class, then what it was taken for and how confidently.</p>'
    return f'{note}<div class="mistakes">\n' + "\n".join(figures) + "\n</div>"


def _jpeg(image: np.ndarray) -> bytes:
    """Return an image, uint8 BGR [H, W, 3], as a JPEG file of at most 192 pixels a side."""
    scale = _SIDE / max(image.shape[:2])
    if scale < 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    elif scale >= 2:  # a small image would be a blur
        factor = int(scale)
        image = image.repeat(factor, axis=0).repeat(factor, axis=1)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 85])[1].tobytes()


def _training(run: Path) -> list[str]:
    """Return the curves and the settings of a training run, as far as its folder has them."""
    parts = []
    with suppress(OSError):
        curves = _data((run / "curves.png").read_bytes(), "png")
        parts.append(f'<img class="chart" alt="Loss, accuracy and learning rate" src="{curves}">')
    with suppress(OSError), open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
        last = [[name, str(value)] for name, value in rows[-1].items()] if rows else []
        parts.append(f"<details><summary>Last epoch</summary>{_table(['', ''], last)}</details>")
    with suppress(OSError, ValueError, KeyError, AttributeError):
        arguments = json.loads((run / "run.json").read_text())["arguments"]
        settings = [[k.replace("_", "-"), str(v)] for k, v in arguments.items() if v != "None"]
        parts.append(
            f"<details open><summary>Settings</summary>{_table(['', ''], settings)}</details>"
        )
    return ["<h2>Training</h2>", *parts] if parts else []
