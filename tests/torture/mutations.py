"""Files of every kind that is read, and random damage to them."""

import io
import random
from dataclasses import asdict
from pathlib import Path

import models
from models.repvgg import RepVGG

import megengine as mge
import megengine.module as M
import numpy as np
from PIL import Image

from data.transforms import Preprocessing
from deployment import onnx_export
from tests.torture.train_small import SMALL
from weights import checkpoint

KINDS = ("flip", "set", "ones", "zeros", "cut", "drop", "double", "splice", "code")
IMAGES = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "gif": "GIF", "tif": "TIFF"}


def write_originals(folder: Path) -> list[Path]:
    """Write a small valid file of each kind; returns them."""
    models.registry._REGISTRY["RepVGGA0"] = (RepVGG, SMALL)
    mge.random.seed(0)
    model = models.create("RepVGGA0", 3)
    contents = checkpoint.of_model(model, Preprocessing(size=32), ["a", "b", "c"])
    checkpoint.save(contents, folder / "ours.pkl")
    tensors = {name: value.astype(np.float32) for name, value in contents.state_dict.items()}
    np.savez(folder / "arrays.npz", **tensors)
    golden = Path(__file__).parent.parent / "golden" / "pth"
    for name in ("zip.pth", "legacy.pth", "plain.pth"):
        (folder / name).write_bytes((golden / name).read_bytes())
    _write_onnx(model, folder / "network.onnx")
    noise = np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)
    for suffix, kind in IMAGES.items():
        for name, options in (("plain", {}), *_variants(suffix)):
            content = io.BytesIO()
            Image.fromarray(noise).save(content, kind, **options)
            (folder / f"{name}.{suffix}").write_bytes(content.getvalue())
    return sorted(folder.iterdir())


def _variants(suffix: str) -> list[tuple[str, dict]]:
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    return {
        "jpg": [("progressive", {"progressive": True}), ("rotated", {"exif": exif})],
        "webp": [("lossless", {"lossless": True, "exif": exif})],
        "tif": [("deflated", {"compression": "tiff_deflate"})],
    }.get(suffix, [])


def _write_onnx(model: M.Module, path: Path) -> None:
    preprocessing = Preprocessing(size=32)
    metadata = {
        "arch": "RepVGGA0",
        "classes": ["a", "b", "c"],
        "num_classes": 3,
        "preprocessing": asdict(preprocessing),
    }
    model = models.to_deploy(model)
    onnx_export.export_onnx(model, path, preprocessing, size=32, metadata=metadata)


def mutated(content: bytes, rng: random.Random, other: bytes, canary: Path) -> bytes:
    """Return a damaged copy of a file's content.

    `other` is spliced in at times; some pickles are given code that would write `canary`.
    """
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 16))):
        at = rng.randrange(len(changed)) if changed else 0
        if rng.random() < 0.5:  # the headers are at the beginning
            at = min(at, rng.randrange(512))
        size = rng.choice((1, 2, 4, 8, 64, 1024))
        kind = rng.choice(KINDS)
        if kind == "flip" and changed:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "set" and changed:
            changed[at] = rng.randrange(256)
        elif kind in ("ones", "zeros"):
            changed[at : at + size] = (b"\xff" if kind == "ones" else b"\0") * size
        elif kind == "cut":
            del changed[rng.randrange(len(changed) + 1) :]
        elif kind == "drop":
            del changed[at : at + size]
        elif kind == "double":
            changed[at:at] = changed[at : at + size]
        elif kind == "splice":
            start = rng.randrange(len(other))
            changed[at : at + size] = other[start : start + size]
        elif kind == "code":
            changed = _with_code(changed, rng, canary)
    return bytes(changed)


def _with_code(content: bytearray, rng: random.Random, canary: Path) -> bytearray:
    """Return a pickle that begins by calling something, as an attacker's would."""
    call = (
        rng.choice(
            (
                b"cos\nsystem\n(S'touch %s'\ntR0",
                b'cbuiltins\nexec\n(S\'open("%s", "w")\'\ntR0',
                b'c__builtin__\neval\n(S\'open("%s", "w")\'\ntR0',
                b"cbuiltins\nopen\n(S'%s'\nS'w'\ntR0",
                b"(S'touch %s'\nios\nsystem\n0",
                b"cnumpy\nload\n(S'%s'\ntR0",
                b"csubprocess\ngetoutput\n(S'touch %s'\ntR0",
            )
        )
        % str(canary).encode()
    )
    if content[:1] == b"\x80":  # after the protocol, and without the length of the first frame
        return content[:2] + call + (content[11:] if content[2:3] == b"\x95" else content[2:])
    return bytearray(call) + content
