"""EXIF's orientation, wherever it stands, turns an image once, in training as in evaluation."""

import io
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from data import decoding
from data.jpeg import Box
from tests.data.image_files import png_chunk

SCENE = cv2.resize(
    np.random.default_rng(3).integers(0, 256, (3, 4, 3), np.uint8), (24, 16), interpolation=1
)


def tiff(rng, orientation):
    """An EXIF block: either order of bytes, the tag among others, as a number of either size."""
    order = rng.choice(["<", ">"])
    long = rng.random() < 0.2
    value = struct.pack(
        order + ("I" if long else "HH"), *([orientation] if long else [orientation, 0])
    )
    entries = {0x0112: (4 if long else 3, 1, value)}
    for tag in rng.choice([0x0100, 0x0106, 0x0131, 0x0213, 0x9003], int(rng.integers(4)), False):
        entries[int(tag)] = (3, 1, struct.pack(order + "HH", rng.integers(1, 9), 0))
    if rng.random() < 0.1:
        del entries[0x0112]
    start = int(rng.choice([8, 8, 8, 26]))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", start)
    listed = sorted(entries.items()) if rng.random() < 0.8 else list(entries.items())
    body = struct.pack(order + "H", len(entries)) + b"".join(
        struct.pack(order + "HHI", tag, *entry[:2]) + entry[2] for tag, entry in listed
    )
    return head + bytes(start - 8) + body + bytes(4)


def xmp(rng, orientation):
    """An XMP packet, with the orientation as attribute or as element, or without."""
    text = rng.choice(
        [
            f'<rdf:Description tiff:Orientation="{orientation}"/>',
            f"<tiff:Orientation>{orientation}</tiff:Orientation>",
            "<rdf:Description xmp:Rating='1'/>",
        ]
    )
    return f"<x:xmpmeta xmlns:x='adobe:ns:meta/'>{text}</x:xmpmeta>".encode()


def segment(marker, data):
    return bytes([0xFF, marker]) + struct.pack(">H", len(data) + 2) + data


def some_orientation(rng):
    return int(rng.choice([1, 2, 3, 4, 5, 6, 7, 8, 0, 9]))


def jpeg_with_metadata(rng):
    mode = rng.choice(["RGB", "L", "CMYK"], p=[0.6, 0.2, 0.2])
    content = io.BytesIO()
    sampling = {} if mode == "L" else {"subsampling": int(rng.integers(3))}
    Image.fromarray(SCENE).convert(mode).save(content, "JPEG", quality=95, **sampling)
    parts = [
        segment(0xFE, b"a comment that says Exif\0\0"),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(rng, some_orientation(rng))),
        segment(0xE1, b"Exif\0\0" + tiff(rng, some_orientation(rng))),
        segment(0xE1, b"something else"),
        segment(0xE2, b"MPF\0" + bytes(20)),
        segment(0xED, b"Photoshop 3.0\0" + bytes(30)),
    ]
    if rng.random() < 0.15:  # one block in two segments
        block = tiff(rng, some_orientation(rng))
        at = int(rng.integers(9, len(block)))
        parts += [segment(0xE1, b"Exif\0\0" + block[:at]), segment(0xE1, b"Exif\0\0" + block[at:])]
    chosen = rng.permutation(len(parts))[: int(rng.integers(len(parts) + 1))]
    content = content.getvalue()
    first = 2 if rng.random() < 0.5 else 4 + int.from_bytes(content[4:6], "big")  # or after JFIF's
    return content[:first] + b"".join(parts[i] for i in chosen) + content[first:]


def webp_with_metadata(rng):
    content = io.BytesIO()
    options = {}
    if rng.random() < 0.7:
        options["exif"] = (b"Exif\0\0" if rng.random() < 0.5 else b"") + tiff(
            rng, some_orientation(rng)
        )
    if rng.random() < 0.5:
        options["xmp"] = xmp(rng, some_orientation(rng))
    Image.fromarray(SCENE).save(content, "WEBP", lossless=True, **options)
    return content.getvalue()


def png_with_metadata(rng):
    content = cv2.imencode(".png", SCENE)[1].tobytes()
    block = tiff(rng, some_orientation(rng))
    raw = b"\nexif\n%8d\n%b\n" % (len(block) + 6, (b"Exif\0\0" + block).hex().encode())
    packet = xmp(rng, some_orientation(rng))
    parts = [
        png_chunk(b"eXIf", block),
        png_chunk(b"tEXt", b"Raw profile type exif\0" + raw),
        png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + packet),
        png_chunk(b"tEXt", b"Comment\0Orientation"),
    ]
    chosen = rng.permutation(len(parts))[: int(rng.integers(len(parts) + 1))]
    at = 33 if rng.random() < 0.5 else len(content) - 12  # before or after the pixels
    return content[:at] + b"".join(parts[i] for i in chosen) + content[at:]


def other_with_metadata(rng):
    exif = Image.Exif()
    exif[0x0112] = some_orientation(rng)
    content = io.BytesIO()
    kind = str(rng.choice(["TIFF", "AVIF"]))
    Image.fromarray(SCENE).save(content, kind, exif=exif)
    return content.getvalue()


def shown_by_pillow(content):
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[..., ::-1]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "make", [jpeg_with_metadata, webp_with_metadata, png_with_metadata, other_with_metadata]
)
def test_training_evaluation_and_pillow_see_the_same(tmp_path, make, seed):
    rng = np.random.default_rng(seed)
    turned = 0
    for _ in range(40):
        content = make(rng)
        expected = shown_by_pillow(content)
        path = tmp_path / "image"
        path.write_bytes(content)
        np.testing.assert_array_equal(decoding.decode(path), expected)
        crop = decoding.decode_crop(path, lambda h, w: Box(0, 0, h, w), 1000)
        np.testing.assert_array_equal(crop, expected)
        turned += expected.shape[0] > expected.shape[1]
    assert turned >= 3


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_reduced_crops_are_upright_too(tmp_path, rng, orientation, reduction):
    smooth = cv2.resize(rng.integers(0, 256, (3, 4, 3), np.uint8), (160, 128), interpolation=2)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(smooth).save(tmp_path / "a.jpg", exif=exif, quality=95, subsampling=0)
    whole = decoding.decode(tmp_path / "a.jpg")
    box = Box(16, 32, 64, 80)
    part = decoding.decode_crop(tmp_path / "a.jpg", lambda h, w: box, 64 // reduction)
    assert part.shape == (64 // reduction, 80 // reduction, 3)
    expected = cv2.resize(whole[16:80, 32:112], part.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert abs(part.astype(int) - expected).mean() < 3
