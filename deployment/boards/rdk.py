"""Write a kit for D-Robotics' RDK X5 or X3, from which its mapper compiles an int8 network.

Fields and values are those of D-Robotics' model zoo (rdk_model_zoo, commit be4f89b), but for
`input_space_and_range`, which it does not set; so are the names, which rdk_zoo.py has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import models

import megengine.module as M
import numpy as np
import onnx

from data import sources
from data.transforms import Preprocessing
from deployment.int8 import calibration, graph, ptq
from deployment.onnx_export import export_onnx
from deployment.onnx_graph import to_onnx
from utils import UserError

from . import kit, sensitivity
from .rdk_zoo import MARCHES, names_of

CALIBRATION = "calibration_data_{color}_f32"
RANGES = "activation_ranges.json"
IMAGES = 100  # calibration images
_IMAGES_FOR_RANGES = 64  # sufficient; their feature maps are held in memory
_IMAGES_FOR_SENSITIVITY = 16  # on which each operator is measured

_CONFIG = """\
# {arch} for hb_mapper makertbin
model_parameters:
  onnx_model: './{onnx}'
  march: '{march}'
  layer_out_dump: False
  working_dir: '{folder}'
  output_model_file_prefix: '{compiled}'
{settings}
input_parameters:
  input_name: ""
  input_type_rt: 'nv12'
  input_space_and_range: 'bt601_video'
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
{compiler}"""

_INT16 = """
{count} operators are computed in int16, see node_info. They were chosen by a simulation of int8,
without the vendor's tools and with corrected biases: with all tensors in int8 the SQNR of the
logits is {before:.1f} dB, with the tensors of these operators in more bits {after:.1f} dB.
"""

_README = """\
{arch} for the {board} (march {march})

In this folder:
  {onnx}
      input "data" float32 [1, 3, {size}, {size}], {color}
      output "output" [1, {classes}]: logits
  {calibration}/
      {count} images: short side {short}, centre crop {size}, {color}, planes, float32, 0 to 255;
      the toolchain's data_preprocess.py is not needed
  {config}
      settings of the mapper, which normalizes images as in training: (pixel - mean) * scale
  {ranges}
      clipping ranges of the activations, tensor -> [lowest, highest],
      found on {for_ranges} of the images by the method "{clip}", which left the least noise in the
      logits of an int8 network; the mapper does not read this file, but its settings, such as
      calibration_type and max_percentile, can be compared with it

The network is float and equalized for int8: its channels are rescaled between the layers by powers
of two, so that it computes the same bits as before and loses less accuracy when the activations of
a tensor share one scale. No board and no toolchain of the vendor was at hand when this kit was
made: the mapper's result, its accuracy and its speed have not been measured, and classify.py has
been run with onnxruntime in the place of the board's runtime.
{int16}
Run in the vendor's toolchain container, from this folder:

  hb_mapper checker --model-type onnx --march {march} --model ./{onnx}
  hb_mapper makertbin --model-type onnx --config {config}

The compiled network is {folder}/{compiled}.bin.
Copy it into one folder on the board, with {scripts},
and run there:

  python3 classify.py photo.jpg --save labelled
  python3 classify.py --bench
  hrt_model_exec perf --model_file {compiled}.bin --core_id 0 \\
      --frame_count 200 --thread_num 1 --perf_time 0
  hrt_model_exec perf --model_file {compiled}.bin --core_id 0 \\
      --frame_count 200 --thread_num 4 --perf_time 0

classify.py calls hbm_runtime or, where that is missing, hobot_dnn's pyeasy_dnn. It prints the five
best classes, and writes the image with them into the folder labelled. --bench and hrt_model_exec
measure latency and frames/s with 1 and 4 threads.

The input is an NV12 image of {size} x {size}; the network has no softmax. classify.py resizes and
crops an image as for an evaluation, and lets OpenCV convert it to NV12, whose luma is then 16 to
235. Without "input_space_and_range: 'bt601_video'" in the settings the mapper would read it as 0
to 255, and black as dark grey. Whatever else feeds the network has to keep to this range.
"""


def write_kit(
    model: M.Module,
    preprocessing: Preprocessing,
    images: str | Path,
    out: str | PathLike,
    count: int = IMAGES,
    metadata: dict | None = None,
    board: str = "rdk-x5",
    int16: int | None = None,
) -> list[str]:
    """Write the kit into the new folder `out` and return the names of its files and folders.

    Args:
        model: fused network made by `models.create`.
        preprocessing: preprocessing of the images that `model` takes.
        images: folder of images to calibrate on; its subfolders are searched too.
        out: folder to create.
        count: number of images, taken evenly from the sorted files; all if there are fewer.
        metadata: see `onnx_export.export_onnx`.
        board: "rdk-x5" or "rdk-x3".
        int16: number of operators to compute in int16, the most sensitive ones (default: those that
            the zoo names).

    Raises UserError when the size is odd, there are no images, an image is broken, or the folder
    cannot be written; nothing is left behind then.
    """
    if preprocessing.size % 2:
        raise UserError(
            f"the size is {preprocessing.size}, but NV12 images have even sides; give --size "
            f"{preprocessing.size - 1} or {preprocessing.size + 1}"
        )
    variant = models.variant_name(model.arch, model.options)
    names = names_of(variant, preprocessing.size, board)
    values = {**_values(model, preprocessing, board), **names}
    with kit.new_folder(out) as folder:
        files = calibration.files(images, count)
        values["count"] = len(files)
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
        crops = calibration.crops(files, preprocessing)
        for name, crop in zip(sources.stems(files), crops, strict=True):
            calibration_pixels(crop, preprocessing).tofile(pixels / f"{name}.rgb")
        sample = calibration.evenly(crops, _IMAGES_FOR_RANGES)
        normalized = _normalized(sample, preprocessing)
        quantized = _equalize(folder / names["onnx"], normalized)
        if int16:
            found = _most_sensitive(model, quantized, normalized, int16)
            values |= names_of(variant, preprocessing.size, board, found.nodes)
            values["int16"] = _INT16.format(
                count=len(found.nodes), before=found.before, after=found.after
            )
        (folder / RANGES).write_text(json.dumps(quantized.bounds, indent=2) + "\n")
        values |= {"ranges": RANGES, "for_ranges": len(sample), "clip": quantized.clip}
        (folder / names["config"]).write_text(_CONFIG.format_map(values))
        scripts = kit.write_scripts(
            folder, "rdk", f"{names['compiled']}.bin", model, preprocessing, metadata
        )
        values["scripts"] = ", ".join(scripts)
        (folder / "README.txt").write_text(_README.format_map(values))
    return [names["onnx"], values["calibration"], names["config"], RANGES, *scripts, "README.txt"]


def _values(model: M.Module, preprocessing: Preprocessing, board: str) -> dict[str, Any]:
    """Return what the settings and the README say of the network and its images, by name."""
    color = preprocessing.color.lower()
    return {
        "arch": model.arch,
        "board": board.upper().replace("-", " "),
        "march": MARCHES[board],
        "int16": "",
        "classes": model.num_classes,
        "size": preprocessing.size,
        "short": preprocessing.short_side,
        "color": color,
        "calibration": CALIBRATION.format(color=color),
        "mean": " ".join(f"{value:.8g}" for value in preprocessing.mean),
        "scale": " ".join(f"{1 / value:.8f}".rstrip("0") for value in preprocessing.std),
    }


def _normalized(crops: Sequence[np.ndarray], preprocessing: Preprocessing) -> np.ndarray:
    """Return crops as the mapper normalizes them, float32 [N, 3, size, size]."""
    mean = np.array(preprocessing.mean, np.float32)[:, None, None]
    std = np.array(preprocessing.std, np.float32)[:, None, None]
    return np.stack([(calibration_pixels(crop, preprocessing) - mean) / std for crop in crops])


def _equalize(path: Path, images: np.ndarray) -> ptq.Quantized:
    """Equalize the network of an ONNX file in place, and return how to quantize it."""
    model = onnx.load(path)
    quantized = ptq.quantize(graph.for_batch(model, "batch"), images)
    onnx.save(graph.with_weights(model, graph.weights(quantized.equalized)), path)
    return quantized


def _most_sensitive(
    model: M.Module, quantized: ptq.Quantized, images: np.ndarray, count: int
) -> sensitivity.Sensitive:
    """Return the operators of the network that cost most accuracy in int8.

    Biases are corrected for the int8 weights, whose noise would hide that of the activations.
    """
    training = model.training
    model.eval()
    # per-channel scales of weights need a later operator set than the board's; names are the same
    height, width = images.shape[2:]
    later = to_onnx(model, (height, width), 13, "batch", "data", "output")
    model.train(training)
    later = graph.with_weights(later, graph.weights(quantized.model))
    images = calibration.evenly(images, _IMAGES_FOR_SENSITIVITY)
    expected = graph.logits(graph.for_batch(quantized.equalized, "batch"), images)
    return sensitivity.most_sensitive(later, quantized.bounds, images, expected, count)


def calibration_pixels(crop: np.ndarray, preprocessing: Preprocessing) -> np.ndarray:
    """Return a crop, uint8 BGR [size, size, 3], as float32 [3, size, size] from 0 to 255.

    Its channels are in the order of the network; the mapper normalizes it.
    """
    if preprocessing.color == "RGB":
        crop = crop[:, :, ::-1]
    return np.ascontiguousarray(crop.transpose(2, 0, 1), np.float32)
