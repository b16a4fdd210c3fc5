"""Write a kit for boards with a Rockchip NPU, from which rknn-toolkit2 compiles a network.

Calls and values are those of the documentation of rknn-toolkit2 2.3.2; 2.5.0 has been run.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from os import PathLike
from pathlib import Path

import models

import cv2
import megengine.module as M
import numpy as np
from tqdm import tqdm

from data import sources
from data.decoding import ImageFile, decode
from data.transforms import Preprocessing
from deployment.int8 import calibration
from deployment.onnx_export import export_onnx

from . import kit

IMAGES = 50  # calibration images; the toolkit asks for 20 to 100, and for 20 to 50 with mmse
EVALUATED = 1000  # images that are simulated, in a minute or two
_CONVERT = Path(__file__).parent / "scripts" / "convert_rknn.py"

_README = """\
{arch} for boards with a Rockchip NPU (RK3562, RK3566, RK3568, RK3576, RK3588 and others)

In this folder:
  {arch}.onnx
      input "input" float32 [1, 3, {size}, {size}], {color}, normalized; opset 12
      output "output" [1, {classes}]: logits
  dataset.txt, calibration/
      {count} images to calibrate on: short side {short}, centre crop {size}
{evaluation}  convert.py
      conversion by rknn-toolkit2, and evaluation in its simulator
  {scripts}
      what the board needs, beside {arch}.rknn

Convert on a PC (x86-64), in an environment of its own:

  python3 -m venv rknn && rknn/bin/pip install rknn-toolkit2==2.5.0
  rknn/bin/python convert.py --target rk3588
  rknn/bin/python convert.py --target rk3588 --algorithm kl_divergence
  rknn/bin/python convert.py --target rk3588 --qdq {arch}-int8.onnx

The last one takes ranges and weights from a file that is written first, from the folder of this
project; KIT is this folder:

  python quantize.py --model CHECKPOINT --calibration DIR --images {count} --target rknn \\
      --size {size} --out KIT/{arch}-int8.onnx

The toolkit prints "E RKNN: Unkown op target: 0", which has no consequence. A file is for one chip
(RK3566 and RK3568 share one).

Copy {arch}.rknn, {scripts} into one folder on the board,
install rknn-toolkit-lite2 there, and run:

  python3 classify.py photo.jpg --save labelled
  python3 classify.py --bench

The network normalizes its pixels itself: its input is {color}, uint8 [1, {size}, {size}, 3]. No
board was at hand when this kit was made: classify.py has been run with onnxruntime in the place of
the board's runtime.
"""
_EVALUATION = """\
  val_label.txt, evaluation/
      {count} images, resized and cropped alike, with their classes
"""


def write_kit(
    model: M.Module,
    preprocessing: Preprocessing,
    images: str | Path,
    out: str | PathLike,
    count: int = IMAGES,
    metadata: dict | None = None,
    test: tuple[Sequence[ImageFile], Sequence[int]] | None = None,
) -> list[str]:
    """Write the kit into the new folder `out` and return the names of its files and folders.

    Args:
        model: fused network made by `models.create`.
        preprocessing: preprocessing of the images that `model` takes.
        images: folder of images to calibrate on; its subfolders are searched too.
        out: folder to create.
        count: number of images, taken evenly from the sorted files; all if there are fewer.
        metadata: see `onnx_export.export_onnx`.
        test: images and their classes, of which at most `EVALUATED`, taken evenly, are for the
            simulator.

    Raises UserError when there are no images, an image is broken or in both sets, or the folder
    cannot be written; nothing is left behind then.
    """
    variant = models.variant_name(model.arch, model.options)
    compiled = f"{variant}.rknn"
    with kit.new_folder(out) as folder:
        files = calibration.files(images, count)
        export_onnx(
            model,
            folder / f"{variant}.onnx",
            preprocessing,
            size=preprocessing.size,
            opset=12,
            batch=1,
            input_name="input",
            output_name="output",
            metadata=metadata,
        )
        listed = [f"{variant}.onnx", "dataset.txt", "calibration"]
        crops = calibration.crops(files, preprocessing)
        names = _write_crops(folder / "calibration", files, crops)
        lines = "".join(f"calibration/{name}\n" for name in names)
        (folder / "dataset.txt").write_text(lines, errors="surrogateescape")
        evaluation = ""
        if test is not None:
            every, classes = test
            chosen = calibration.evenly(range(len(every)), EVALUATED)
            files_of_test = [every[i] for i in chosen]
            calibration.assert_disjoint(files, files_of_test)
            progress = tqdm(files_of_test, "evaluation", leave=False, disable=None)
            crops_of_test = (preprocessing.evaluation_crop(decode(file)) for file in progress)
            names_of_test = _write_crops(folder / "evaluation", files_of_test, crops_of_test)
            pairs = zip(names_of_test, chosen, strict=True)
            (folder / "val_label.txt").write_text(
                "".join(f"{name} {classes[i]}\n" for name, i in pairs), errors="surrogateescape"
            )
            listed += ["val_label.txt", "evaluation"]
            evaluation = _EVALUATION.format(count=len(chosen))
        shutil.copyfile(_CONVERT, folder / "convert.py")
        scripts = kit.write_scripts(folder, "rknn", compiled, model, preprocessing, metadata)
        (folder / "README.txt").write_text(
            _README.format(
                arch=variant,
                size=preprocessing.size,
                short=preprocessing.short_side,
                classes=model.num_classes,
                color=preprocessing.color,
                count=len(files),
                evaluation=evaluation,
                scripts=", ".join(scripts),
            )
        )
    return [*listed, "convert.py", *scripts, "README.txt"]


def _write_crops(
    folder: Path, files: Sequence[ImageFile], crops: Iterable[np.ndarray]
) -> list[str]:
    """Write the crops, uint8 BGR [H, W, 3], of image files as PNG; return the PNG files' names."""
    folder.mkdir()
    names = [f"{stem}.png" for stem in sources.stems(files)]
    for crop, name in zip(crops, names, strict=True):
        (folder / name).write_bytes(cv2.imencode(".png", crop)[1].tobytes())
    return names
