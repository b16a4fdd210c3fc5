"""Which classes are taken for which: the confusion matrix, and a table of the classes."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass
from typing import Any

import numpy as np

from data.class_names import in_english
from data.datasets import Dataset
from data.figures import as_png

from .predictions import Predictions, right_classes

Row = dict[str, Any]
_NAMED = 40  # classes whose names fit into a picture


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix of the classes that are those of an image or of a prediction.

    Attributes:
        classes: names in the data set.
        names: names in English where the classes are ImageNet's, else the same.
        matrix: number of images of a class (row) that were taken for another (column), int [K, K].
        top5: number of images of each class that have it among the best five, int [K].
    """

    classes: list[str]
    names: list[str]
    matrix: np.ndarray
    top5: np.ndarray

    def rows(self) -> list[Row]:
        """Return the table of the classes, with percentages as text, in the order of the classes.

        "top1" is the percentage of the class's images that are recognized, and "precision" that of
        the images taken for it that are of it; they are "" where there is no image.
        """
        rows = []
        predicted = self.matrix.sum(axis=0)
        for i, images in enumerate(self.matrix.sum(axis=1).tolist()):
            correct = int(self.matrix[i, i])
            others = self.matrix[i].copy()
            others[i] = 0
            most = int(others.argmax())
            rows.append(
                {
                    "class": self.classes[i],
                    "name": self.names[i],
                    "images": images,
                    "correct": correct,
                    "top5_correct": int(self.top5[i]),
                    "top1": _percent(correct, images),
                    "top5": _percent(int(self.top5[i]), images),
                    "predicted": int(predicted[i]),
                    "precision": _percent(correct, int(predicted[i])),
                    "mostly_taken_for": self.names[most] if others[most] else "",
                    "times": int(others[most]),
                }
            )
        return rows

    def confusions(self, count: int) -> list[tuple[str, str, int]]:
        """Return the `count` most frequent mistakes: name of the class, of the other, images."""
        others = self.matrix - np.diag(np.diag(self.matrix))
        order = np.argsort(-others, axis=None, kind="stable")[:count]
        places = zip(*np.unravel_index(order, others.shape), strict=True)
        return [
            (self.names[i], self.names[j], int(others[i, j])) for i, j in places if others[i, j]
        ]


def confusion(dataset: Dataset, predictions: Predictions) -> Confusion:
    """Count which classes of a data set were taken for which."""
    right, best = right_classes(dataset, predictions), predictions.classes[:, 0]
    used = np.unique(np.concatenate([right, best]))
    matrix = np.zeros((len(used), len(used)), int)
    np.add.at(matrix, (np.searchsorted(used, right), np.searchsorted(used, best)), 1)
    if dataset.labels.ndim == 2:  # any right class counts
        labels = dataset.labels[predictions.images]
        hits = np.take_along_axis(labels, predictions.classes, axis=1).any(axis=1)
    else:
        hits = (predictions.classes == right[:, None]).any(axis=1)
    top5 = np.bincount(np.searchsorted(used, right), weights=hits, minlength=len(used))
    names = in_english(dataset.classes, len(dataset.classes))
    return Confusion(
        [dataset.classes[i] for i in used], [names[i] for i in used], matrix, top5.astype(int)
    )


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f}" if whole else ""


def matrix_csv(counted: Confusion) -> bytes:
    """Return the matrix as CSV: a row for each right class, a column for each predicted one."""
    lines = [["right class", *counted.classes]]
    lines += [[name, *map(str, row)] for name, row in
              zip(counted.classes, counted.matrix.tolist(), strict=True)]  # fmt: skip
    return _csv(lines)


def classes_csv(counted: Confusion) -> bytes:
    """Return the table of the classes as CSV."""
    rows = counted.rows()
    return _csv([list(rows[0]), *(list(row.values()) for row in rows)])


def _csv(lines: list[list]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue().encode(errors="escaped")


def matrix_png(counted: Confusion) -> bytes:
    """Draw the matrix, each row as percentages of its class's images, as a PNG."""
    from matplotlib.figure import Figure  # the object interface draws without a display

    count = len(counted.classes)
    shares = 100 * counted.matrix / np.maximum(1, counted.matrix.sum(axis=1, keepdims=True))
    side = min(11, 3.6 + 0.28 * count)
    figure = Figure(figsize=(side + 0.8, side), layout="constrained")
    axes = figure.subplots()
    picture = axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(picture, ax=axes, shrink=0.7, label="% of the class's images")
    axes.set(xlabel="predicted class", ylabel="right class")
    if count <= _NAMED:
        names = [_short(name) for name in counted.names]
        axes.set_xticks(range(count), names, rotation=90)
        axes.set_yticks(range(count), names)
    if count <= 12:
        for i, j in np.argwhere(counted.matrix).tolist():
            color = "white" if shares[i, j] > 60 else "black"
            axes.text(j, i, counted.matrix[i, j], ha="center", va="center", color=color)
    return as_png(figure)


def classes_png(counted: Confusion) -> bytes:
    """Draw the accuracy of each class, the best first, as a PNG."""
    from matplotlib.figure import Figure

    rows = [row for row in counted.rows() if row["images"]]
    rows.sort(key=lambda row: -float(row["top1"]))
    values = [float(row["top1"]) for row in rows]
    named = len(rows) <= _NAMED
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(rows) if named else 4), layout="constrained")
    axes = figure.subplots()
    if named:
        bars = axes.barh(range(len(rows)), values)
        axes.bar_label(bars, [f" {row['top1']}" for row in rows], fontsize="small")
        axes.set_yticks(range(len(rows)), [_short(row["name"]) for row in rows])
        axes.invert_yaxis()
        axes.set(xlabel="top-1, %", xlim=(0, 112))
    else:
        axes.bar(range(len(rows)), values, width=1)
        axes.set(xlabel="classes, best first", ylabel="top-1, %", ylim=(0, 100))
    return as_png(figure)


def _short(name: str) -> str:
    name = name.partition(",")[0].replace("$", r"\$")  # which would begin a formula
    return name if len(name) <= 24 else name[:22] + ".."
