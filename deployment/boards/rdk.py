"""A kit for D-Robotics' RDK X5: all that its mapper needs to quantize and compile a network.

Names, fields and values are those of D-Robotics' model zoo (rdk_model_zoo, commit be4f89b).
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import megengine.module as M
import numpy as np
import onnx

from data import sources
from data.decoding import decode
from data.transforms import Preprocessing
from deployment.int8 import calibration, graph, ptq

from . import kit

CALIBRATION = "calibration_data_{color}_f32"
RANGES = "activation_ranges.json"
_IMAGES_FOR_RANGES = 64  # enough, and their maps are held in memory

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
  {ranges}
      a hint: where to clip the activations, tensor -> [lowest, highest], in the network's own
      numbers; found on {for_ranges} of the images by "{clip}", the way with the least noise in the
      logits of an int8 network. The mapper does not read it; its settings, such as
      calibration_type and max_percentile, can be compared with it.

The network is float and equalized for int8: its channels are rescaled between the layers, by powers
of two, so that it computes the same bits as before and loses less when activations get one scale a
tensor. No board and no toolchain of the vendor was at hand when this kit was made: what the mapper
makes of it, its accuracy and its speed have not been measured.

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
    from deployment.onnx_export import export_onnx

    files = calibration.files(images, count)
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
        pixels = folder / values["calibration"]
        pixels.mkdir()
        for name, file in zip(sources.stems(files), files, strict=True):
            calibration_pixels(decode(file), preprocessing).tofile(pixels / f"{name}.rgb")
        some = calibration.files(images, min(count, _IMAGES_FOR_RANGES))
        found = _equalize(folder / names["onnx"], some, preprocessing)
        (folder / RANGES).write_text(json.dumps(found.bounds, indent=2) + "\n")
        values |= {"ranges": RANGES, "for_ranges": len(some), "clip": found.clip}
        (folder / names["config"]).write_text(_CONFIG.format_map(values))
        (folder / "README.txt").write_text(_README.format_map(values))
    return [names["onnx"], values["calibration"], names["config"], RANGES, "README.txt"]


def _equalize(path: Path, files: list[Path], preprocessing: Preprocessing) -> ptq.Quantized:
    """Equalize the network in a file of one image, in place; returns how to quantize it."""
    mean = np.array(preprocessing.mean, np.float32)[:, None, None]
    std = np.array(preprocessing.std, np.float32)[:, None, None]
    images = [(calibration_pixels(decode(file), preprocessing) - mean) / std for file in files]
    model = onnx.load(path)
    found = ptq.quantize(graph.for_any_batch(model), np.stack(images))
    onnx.save(graph.with_weights(model, graph.weights(found.equalized)), path)
    return found


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


def calibration_pixels(image: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """uint8 BGR [H, W, 3] -> float32 [3, size, size] from 0 to 255: the mapper itself normalizes.

    Short side and centre crop by OpenCV, bilinear.
    """
    crop = replace(preprocessing, interpolation="bilinear").evaluation_crop(image)
    if preprocessing.color == "RGB":
        crop = crop[:, :, ::-1]
    return np.ascontiguousarray(crop.transpose(2, 0, 1), np.float32)
