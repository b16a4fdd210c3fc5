"""Write a kit for Huawei's Ascend 310 and 310P.

File formats and pixels are those of RepVGG in Ascend's ModelZoo-PyTorch (commit a018f14af, the last
one with the retired benchmark tool); ais_bench's command line is that of its documentation in msit.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path

import models

import megengine.module as M
import numpy as np
from tqdm import tqdm

from data import sources
from data.decoding import ImageFile, decode
from data.transforms import Preprocessing
from deployment.onnx_export import export_onnx

from . import kit

PIXELS = "prep_dataset"

_README = """\
{arch} for Ascend 310 and 310P

In this folder:
  {arch}.onnx
      input "actual_input_1" float32 [-1, 3, {size}, {size}]
      output "output1" [-1, {classes}]: logits
  prep_dataset/
      {count} preprocessed images, float32 [3, {size}, {size}], {color}
  {arch}_prep_bin.info
      list of these images for the retired benchmark tool
  val_label.txt
      file name and label of an image in each line
  {scripts}
      for the board: classify images by ais_bench's InferSession

Compile and run the network with the vendor's tools (CANN) from this folder, here with batch size 1
on a 310P3:

  atc --framework=5 --model={arch}.onnx --output={arch}_bs1 --input_format=NCHW \\
      --input_shape="actual_input_1:1,3,{size},{size}" --log=error --soc_version=Ascend310P3
  python3 -m ais_bench --model {arch}_bs1.om --input ./prep_dataset --output ./ \\
      --output_dirname result --outfmt NPY --batchsize 1 --device 0

ais_bench writes result/NAME_0.npy for each image, and result_summary.json. Compute accuracy and
images per second from the folder of this project:

  python ascend.py score KIT/result KIT/val_label.txt result.json
  python ascend.py parse KIT/result_summary.json 310P

Classify photographs on the board, and measure latency and frames/s:

  python3 classify.py photo.jpg --save labelled
  python3 classify.py --bench

Older versions of CANN have the benchmark tool instead:

  ./benchmark.x86_64 -model_type=vision -device_id=0 -batch_size=1 -om_path={arch}_bs1.om \\
      -input_text_path={arch}_prep_bin.info -input_width={size} -input_height={size} \\
      -output_binary=False -useDvpp=False

  python ascend.py score KIT/result/dumpOutput_device0 KIT/val_label.txt result.json
  python ascend.py parse KIT/result/perf_vision_batchsize_1_device_0.txt 310P

No board and no tool of the vendor was at hand when this kit was made: classify.py has been run with
onnxruntime in the place of the board's runtime.
"""


# ---------------------------------------------------------------- the kit


def write_kit(
    model: M.Module,
    preprocessing: Preprocessing,
    images: Sequence[ImageFile],
    labels: Sequence[int],
    out: str | PathLike,
    metadata: dict | None = None,
) -> list[str]:
    """Write the kit into the new folder `out` and return the names of its files and folders.

    Args:
        model: fused network made by `models.create`.
        preprocessing: preprocessing of the images that `model` takes.
        images, labels: image files and their classes, as labels.labelled_images returns them.
        out: folder to create.
        metadata: see `onnx_export.export_onnx`.

    Raises UserError when an image is broken or the folder cannot be written; nothing is left behind
    then.
    """
    variant = models.variant_name(model.arch, model.options)
    names = sources.stems(images)
    size = preprocessing.size
    with kit.new_folder(out) as folder:
        export_onnx(
            model,
            folder / f"{variant}.onnx",
            preprocessing,
            size=size,
            opset=11,
            batch="-1",
            input_name="actual_input_1",
            output_name="output1",
            metadata=metadata,
        )
        (folder / PIXELS).mkdir()
        progress = tqdm(images, "images", leave=False, disable=None)
        for file, name in zip(progress, names, strict=True):
            prepare(file, preprocessing).tofile(folder / PIXELS / f"{name}.bin")
        (folder / f"{variant}_prep_bin.info").write_text(
            "".join(f"{i} ./{PIXELS}/{n}.bin {size} {size}\n" for i, n in enumerate(names)),
            errors="surrogateescape",
        )
        (folder / "val_label.txt").write_text(
            "".join(
                f"{name}{Path(file).suffix} {label}\n"
                for file, name, label in zip(images, names, labels, strict=True)
            ),
            errors="surrogateescape",
        )
        scripts = kit.write_scripts(
            folder, "ascend", f"{variant}_bs1.om", model, preprocessing, metadata
        )
        (folder / "README.txt").write_text(
            _README.format(
                arch=variant,
                size=size,
                classes=model.num_classes,
                count=len(names),
                color=preprocessing.color,
                scripts=", ".join(scripts),
            )
        )
    return [f"{variant}.onnx", PIXELS, f"{variant}_prep_bin.info", "val_label.txt", *scripts,
            "README.txt"]  # fmt: skip


def prepare(path: ImageFile, preprocessing: Preprocessing) -> np.ndarray:
    """Return an image file as the network's input, float32 [3, size, size].

    It is decoded, resized and cropped as for an evaluation; pixels are divided by 255, and mean and
    std are applied in float32. For a network that was trained with Pillow's bilinear resizing these
    are the pixels of Ascend's own script, which turns no image. Raises BadImageError naming the
    file.
    """
    crop = preprocessing.evaluation_crop(decode(path))
    planes = crop.astype(np.float32).transpose(2, 0, 1)
    if preprocessing.color == "RGB":
        planes = planes[::-1]
    mean, std = (
        np.array(values, np.float64)[:, None, None] / 255
        for values in (preprocessing.mean, preprocessing.std)
    )
    return (planes / np.float32(255) - mean.astype(np.float32)) / std.astype(np.float32)
