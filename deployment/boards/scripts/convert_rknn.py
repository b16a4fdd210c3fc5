"""Convert the network of this kit for a Rockchip NPU, and measure it in the toolkit's simulator.

It runs on a PC, in an environment of its own with rknn-toolkit2.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

try:
    from importlib import metadata

    import numpy as np
    import onnxruntime
    import pixels
    from program import BoardError, read_network
    from rknn.api import RKNN
except ImportError as error:
    _missing: ImportError | None = error
else:
    _missing = None

ALGORITHMS = ("normal", "kl_divergence", "mmse")


class ToolkitError(Exception):
    """A step of the toolkit that failed."""


def main() -> int:
    """Run the command line and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--target", default="rk3588", help="name of the board's chip (default: rk3588)")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--algorithm", choices=ALGORITHMS, default="normal",
        help="how the toolkit chooses the ranges of int8 (default: normal); mmse takes "
        "minutes")  # fmt: skip
    what.add_argument("--qdq", metavar="FILE",
        help="int8 ONNX file of quantize.py --target rknn, to take the ranges from")  # fmt: skip
    what.add_argument("--float16", action="store_true",
        help="compile the network in float16 instead of int8")  # fmt: skip
    add("--evaluate", type=int, metavar="N",
        help="number of images in evaluation/ to simulate, taken evenly; 0 for none (default: "
        "all)")  # fmt: skip
    add("--out", metavar="FILE", help="file to write (default: the one that classify.py reads)")
    add("--json", metavar="FILE", help="file to write the results to")
    args = parser.parse_args()
    if args.evaluate is not None and args.evaluate < 0:
        parser.error("--evaluate must be at least 0")
    folder = Path(__file__).resolve().parent
    if args.evaluate and not (folder / "val_label.txt").is_file():
        parser.error(
            "this kit has no images to simulate; write it by export.py --kit rknn --data DIR"
        )
    for path in (args.out, args.json):
        if path and Path(path).is_dir():
            parser.error(f"{path} is a folder; give the name of a file in it")
        if path and not Path(path).resolve().parent.is_dir():
            parser.error(f"there is no folder {Path(path).parent} to write {path} to")
        if path and not os.access(str(Path(path).resolve().parent), os.W_OK):
            parser.error(
                f"the folder {Path(path).parent} cannot be written; give another for {path}"
            )
        if path and Path(path).exists() and not os.access(path, os.W_OK):
            parser.error(f"{path} is there and cannot be written; give another name")
    if args.qdq and not Path(args.qdq).is_file():
        parser.error(f"there is no {args.qdq}; write it by quantize.py --target rknn")
    out, qdq, report = (path and Path(path).resolve() for path in (args.out, args.qdq, args.json))
    kept = {qdq, folder / "network.json"}
    kept |= {*folder.glob("*.py"), *folder.glob("*.onnx"), *folder.glob("*.txt")}
    for path in (out, report):
        if path and (path in kept or out == report):
            parser.error(f"{path} would replace another file; give another name")
    os.chdir(folder)  # what dataset.txt names is relative to it
    if _missing:
        parser.error(
            f"cannot import rknn-toolkit2 ({_missing}); run this in an environment that has it"
        )
    try:
        network = read_network(folder / "network.json")
        images = [] if args.evaluate == 0 else _read_labels(folder / "val_label.txt")
        rknn, seconds = _build(args, network, qdq)
        _call(rknn, "export_rknn", str(out or network["model"]))
        result = {
            "network": network["name"],
            "target": args.target,
            "ranges": "float16" if args.float16 else qdq.name if qdq else args.algorithm,
            "build_seconds": round(seconds, 1),
            "toolkit": _version(),
        }
        if images:
            _call(rknn, "init_runtime")
            result.update(_evaluate(rknn, network, images, args.evaluate or len(images)))
        rknn.release()
    except (BoardError, ToolkitError) as error:
        print(f"convert.py: error: {error}", file=sys.stderr)
        return 2
    for key, value in result.items():
        print(f"{key}: {value}")
    if report:
        report.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _read_labels(file: Path) -> list[tuple[str, int]]:
    """Return (name, label) of each image in evaluation/; none where the kit has no such images.

    Raises ToolkitError where the file is damaged.
    """
    if not file.is_file():
        return []
    lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    try:
        pairs = [(name, int(label)) for name, label in (line.rsplit(" ", 1) for line in lines)]
    except ValueError:
        pairs = []
    if not pairs:
        raise ToolkitError(f"{file} has other lines than NAME LABEL, or none; copy it from the kit")
    return pairs


def _build(
    args: argparse.Namespace, network: dict[str, Any], qdq: Path | None
) -> tuple[Any, float]:
    """Return the toolkit's network and the seconds that it took to build."""
    start = time.perf_counter()
    rknn = RKNN(verbose=False)
    _call(
        rknn,
        "config",
        mean_values=[network["mean"]],
        std_values=[network["std"]],
        target_platform=args.target,
        quantized_algorithm=args.algorithm,
        quant_img_RGB2BGR=network["color"] == "BGR",
    )
    file = str(qdq or f"{network['name']}.onnx")
    try:
        session = _session(file)
        (entry,) = session.get_inputs()
    except (ToolkitError, ValueError):
        raise ToolkitError(
            f"{file} is no ONNX file with one input; write it by quantize.py --target rknn"
        ) from None
    if qdq:
        _check_quantized(session, file)
        _check_same(session, _session(f"{network['name']}.onnx"), file)
    shape = [1, 3, network["size"], network["size"]]  # an int8 file may take any batch size
    _call(rknn, "load_onnx", model=file, inputs=[entry.name], input_size_list=[shape])
    quantize = not (args.float16 or qdq)
    _call(rknn, "build", do_quantization=quantize, dataset="dataset.txt")
    return rknn, time.perf_counter() - start


def _check_quantized(session: onnxruntime.InferenceSession, file: str) -> None:
    """Raise ToolkitError for a file that is not of quantize.py --target rknn."""
    said = session.get_modelmeta().custom_metadata_map.get("quantization", "{}")
    try:
        target = json.loads(said).get("target")
    except (ValueError, AttributeError):
        target = None
    if target != "rknn":
        raise ToolkitError(
            f"{file} is no int8 file for Rockchip; write one by quantize.py --target rknn"
        )


def _check_same(
    quantized: onnxruntime.InferenceSession, of_kit: onnxruntime.InferenceSession, file: str
) -> None:
    """Raise ToolkitError where a quantized file says that it is not of the kit's network.

    The toolkit normalizes images for it as for the kit's network, whose ONNX file is the other one.
    """
    said, expected = (_statements(session) for session in (quantized, of_kit))
    for key, value in expected.items():
        if said.get(key, value) != value:
            raise ToolkitError(
                f"{file} has {key} {said[key]}, but the network of this kit has {value}; make it "
                "of the checkpoint that the kit was made of, with the kit's --size and other "
                "flags: quantize.py --model CHECKPOINT --target rknn"
            )


def _statements(session: onnxruntime.InferenceSession) -> dict[str, Any]:
    """Return what a file of export.py or quantize.py says of its network and of its input."""
    said = session.get_modelmeta().custom_metadata_map
    keys = ("arch", "options", "num_classes", "classes")
    statements = {key: said[key] for key in keys if key in said}
    try:
        preprocessing = json.loads(said.get("preprocessing", "{}"))
    except ValueError:
        preprocessing = {}
    keys = ("size", "color", "mean", "std")
    return {**statements, **{key: preprocessing[key] for key in keys if key in preprocessing}}


def _version() -> str | None:
    try:
        return metadata.version("rknn-toolkit2")
    except metadata.PackageNotFoundError:
        return None


def _call(rknn: Any, method: str, *arguments: Any, **named: Any) -> Any:
    """Return what a method of the toolkit returns; raise ToolkitError where it fails.

    Methods fail in three ways: with a status other than 0, with None, and, in newer versions, with
    an exception whose message is a traceback that ends with the reason.
    """
    try:
        result = getattr(rknn, method)(*arguments, **named)
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[-1]
        raise ToolkitError(f"{method} failed: {reason}") from None
    if result is None or result == [] or (isinstance(result, int) and result != 0):
        raise ToolkitError(f"{method} failed; the toolkit's message is above")
    return result


def _evaluate(
    rknn: Any, network: dict[str, Any], images: list[tuple[str, int]], count: int
) -> dict[str, Any]:
    """Return top-1 of the float network and of the simulated one, and how often they agree.

    `count` of the images, (name, label), are taken evenly; all if there are fewer.
    """
    count = min(count, len(images))
    images = [images[i * len(images) // count] for i in range(count)]
    of_float = _float_network(network)
    right, simulated, agree, start = 0, 0, 0, time.perf_counter()
    for number, (name, label) in enumerate(images, start=1):
        crop = pixels.read_image(f"evaluation/{name}")
        if crop is None:
            raise ToolkitError(f"cannot read evaluation/{name}; copy it from the kit")
        expected = _class(of_float(crop))
        image = pixels.in_network_order(crop, network)[None]
        actual = _class(_call(rknn, "inference", inputs=[image], data_format=["nhwc"])[0])
        right += expected == label
        simulated += actual == label
        agree += actual == expected
        if number % 100 == 0:
            print(f"{number} of {count} images", file=sys.stderr)
    return {
        "images": count,
        "float_top1": round(100 * right / count, 2),
        "top1": round(100 * simulated / count, 2),
        "agreement": round(100 * agree / count, 2),
        "seconds_per_image": round((time.perf_counter() - start) / count, 3),
    }


def _class(logits: np.ndarray) -> int:
    """Return the class of the largest logit; of a single one, whether it is above 0."""
    return int(np.argmax(logits)) if np.size(logits) > 1 else int(np.max(logits) > 0)


def _float_network(network: dict[str, Any]) -> Callable:
    """Return a function from a crop to the logits of the ONNX file under onnxruntime."""
    session = _session(f"{network['name']}.onnx")
    return lambda crop: session.run(None, {"input": pixels.normalized(crop, network)})[0]


def _session(file: str) -> onnxruntime.InferenceSession:
    try:
        return onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception:  # onnxruntime's are of many kinds
        raise ToolkitError(f"{file} is no ONNX file; copy it from the kit") from None


if __name__ == "__main__":
    sys.exit(main())
