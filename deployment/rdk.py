"""A kit for D-Robotics' RDK X5: all that its mapper needs to quantize and compile a network.

Names, fields and values are those of D-Robotics' model zoo (rdk_model_zoo, commit be4f89b).
"""

from __future__ import annotations

import re
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import megengine.module as M
import numpy as np

from data import sources
from data.datasets import image_files
from data.decoding import decode
from data.transforms import Preprocessing
from utils import UserError

from . import kit

CALIBRATION = "calibration_data_{color}_f32"

_REMOVE = "remove_node_type: 'Quantize;Dequantize;Transpose;Cast;Reshape'"
_DEBUG = "debug_mode: dump_calibration_data"


class _Family(NamedTuple):
    """What the zoo calls a family's files, and what it adds to the mapper's settings."""

    onnx: str
    config: str
    compiled: str
    settings: tuple[str, ...] = ()


# architecture -> names, where {} is the variant
_FAMILIES = {
    r"RepVGGplus(.+)": _Family(
        "RepVGGplus-{}", "RepVGGplus_{}", "RepVGGplus-{}", (_DEBUG, _REMOVE)
    ),
    r"RepVGG(.+)": _Family("RepVGG-{}", "RepVGG_{}", "RepVGG-{}", (_DEBUG, _REMOVE)),
    r"RepViT(.+)": _Family("repvit_{}", "RepViT_{}", "RepViT", (_REMOVE,)),
    r"RepGhost(.+)": _Family("repghostnet_{}", "RepGhost_{}", "RepGhost", (_DEBUG,)),
    r"MobileOne(.+)": _Family("mobileone_{}", "MobileOne_{}", "MobileOne"),  # not in the zoo
}

_CONFIG = """\
# {arch} for hb_mapper makertbin
model_parameters:
  onnx_model: './{onnx}'
  march: 'bayes-e'
  layer_out_dump: False
  working_dir: '{compiled}'
  output_model_file_prefix: '{compiled}'
{settings}
input_parameters:
  input_name: ""
  input_type_rt: 'nv12'
  input_type_train: '{color}'
  input_layout_train: 'NCHW'
  input_shape: ''
  norm_type: 'data_mean_and_scale'
  mean_value: {mean}
  scale_value: {scale}

calibration_parameters:
  cal_data_dir: './{calibration}'
  cal_data_type: 'float32'
  calibration_type: 'default'

compiler_parameters:
  compile_mode: 'latency'
  debug: False
  optimize_level: 'O3'
"""

_README = """\
{arch} for the RDK X5 (march bayes-e)

In this folder:
  {onnx}
      input "data" float32 [1, 3, {size}, {size}], {color}
      output "output" [1, {classes}]: logits
  {calibration}/
      {count} images: short side {short}, centre crop {size}, {color}, planes, float32, 0 to 255;
      the toolchain's data_preprocess.py is not needed
  {config}
      the mapper's settings; it normalizes as the network was trained: (pixel - mean) * scale

In the vendor's toolchain container, from this folder:

  hb_mapper checker --model-type onnx --march bayes-e --model ./{onnx}
  hb_mapper makertbin --model-type onnx --config {config}

The compiled network is then {compiled}/{compiled}.bin. On the board:

  hrt_model_exec perf --model_file {compiled}.bin --core_id 0 \\
      --frame_count 200 --thread_num 4 --perf_time 0

Its input is NV12, {size} x {size}; the network itself has no softmax.
"""


def write_kit(
    model: M.Module,
    preprocessing: Preprocessing,
    images: str | PathLike,
    out: str | PathLike,
    count: int = 100,
    metadata: dict | None = None,
) -> list[str]:
    """Write the kit into the new folder `out`.

    Args:
        model: fused, made by `models.create`.
        preprocessing: what it was trained with; of its size are the pictures.
        images: folder to take `count` pictures for calibration from, evenly over the sorted files
            of it and those below; all of them where there are fewer.
        metadata: as for `onnx_export.export_onnx`.

    Returns the names of what is in the kit. Raises UserError, leaving nothing behind, when there
    are no images, one is broken, or the folder cannot be written.
    """
    from .onnx_export import export_onnx

    files = calibration_files(images, count)
    names = names_of(model.arch, preprocessing.size)
    color = preprocessing.color.lower()
    values = {
        "arch": model.arch,
        "classes": model.num_classes,
        "size": preprocessing.size,
        "short": preprocessing.short_side,
        "color": color,
        "count": len(files),
        "calibration": CALIBRATION.format(color=color),
        "mean": " ".join(f"{value:.8g}" for value in preprocessing.mean),
        "scale": " ".join(f"{1 / value:.8f}".rstrip("0") for value in preprocessing.std),
        **names,
    }
    with kit.new_folder(out) as folder:
        export_onnx(
            model,
            folder / names["onnx"],
            preprocessing,
            size=preprocessing.size,
            opset=11,
            batch=1,
            input_name="data",
            output_name="output",
            metadata=metadata,
        )
        calibration = folder / values["calibration"]
        calibration.mkdir()
        for name, file in zip(sources.stems(files), files, strict=True):
            calibration_pixels(decode(file), preprocessing).tofile(calibration / f"{name}.rgb")
        (folder / names["config"]).write_text(_CONFIG.format_map(values))
        (folder / "README.txt").write_text(_README.format_map(values))
    return [names["onnx"], values["calibration"], names["config"], "README.txt"]


def names_of(arch: str, size: int) -> dict[str, str]:
    """Names of the ONNX file, the mapper's settings and the compiled network, as the zoo has them.

    {"onnx": "RepVGG-A0.onnx", "config": "RepVGG_A0_config.yaml",
     "compiled": "RepVGG-A0_224x224_nv12", "settings": lines that the family adds}
    """
    family, variant = next(
        (family, found[1])
        for pattern, family in _FAMILIES.items()
        if (found := re.fullmatch(pattern, arch))
    )
    if not arch.startswith("RepVGG"):
        variant = variant.lower()
    return {
        "onnx": f"{family.onnx.format(variant)}.onnx",
        "config": f"{family.config.format(variant)}_config.yaml",
        "compiled": f"{family.compiled.format(variant)}_{size}x{size}_nv12",
        "settings": "".join(f"  {line}\n" for line in family.settings),
    }


def calibration_files(folder: str | PathLike, count: int) -> list[Path]:
    """`count` of the images in a folder and those below, evenly over the sorted ones."""
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder}; give one with images for calibration")
    files = image_files(folder)
    if not files:
        raise UserError(f"there are no images in {folder}; give some 100 for calibration")
    count = min(count, len(files))
    return [files[i * len(files) // count] for i in range(count)]


def calibration_pixels(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 BGR [H, W, 3] -> float32 [3, size, size] from 0 to 255: the mapper itself normalizes.

    Short side and centre crop by OpenCV, bilinear.
    """
    crop = replace(preprocessing, interpolation="bilinear").evaluation_crop(image)
    if preprocessing.color == "RGB":
        crop = crop[:, :, ::-1]
    return np.ascontiguousarray(crop.transpose(2, 0, 1), np.float32)
