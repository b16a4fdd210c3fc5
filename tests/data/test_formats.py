"""What OpenCV's and Pillow's encoders write, and what neither does, is read as Pillow reads it."""

import io
import itertools
import struct

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from data import decoding
from data.decoding import BadImageError
from data.formats import FORMATS, SUFFIXES, identify
from data.jpeg import Box
from tests.data.image_files import CMYK, RGB, SUBSAMPLING, YCCK, bmp, png, turbo_jpeg
from tests.support import ROOT

small = np.random.default_rng(0).integers(0, 256, (7, 9, 4), np.uint8)
PHOTO = Image.fromarray(small).resize((37, 29), Image.Resampling.BICUBIC)  # RGBA
BGR = np.asarray(PHOTO.convert("RGB"))[..., ::-1].copy()
DEEP = BGR.astype(np.uint16) * 256 + 77


def as_pillow_reads(content, reduction=1):
    with Image.open(io.BytesIO(content)) as image:
        if reduction > 1:
            image.draft(None, (image.width // reduction, image.height // reduction))
        return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))[..., ::-1]


def saved(kind, mode, **options):
    content = io.BytesIO()
    image = PHOTO.convert("RGB").quantize(200) if mode == "P" else PHOTO.convert(mode)
    image.save(content, kind, **options)
    return content.getvalue()


def encoded(suffix, image, *options):
    return cv2.imencode(suffix, image, options)[1].tobytes()


def by_pillow():
    modes = {
        "PNG": "1 L LA P RGB RGBA",
        "BMP": "1 L P RGB RGBA",
        "GIF": "1 L LA P RGB RGBA",
        "TIFF": "1 L LA P RGB RGBA CMYK",
        "WEBP": "L LA P RGB RGBA",
        "PPM": "1 L RGB RGBA",
        "TGA": "1 L LA P RGB RGBA",
        "JPEG2000": "L LA RGB RGBA CMYK YCbCr",
        "AVIF": "L LA RGB RGBA",
        "JPEG": "1 L RGB CMYK YCbCr",
    }
    for kind, names in modes.items():
        for mode in names.split():
            yield f"{kind} {mode}", kind, saved(kind, mode)
    for compression in ("tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg", "zstd", "lzma"):
        for mode in ("L", "RGB"):
            content = saved("TIFF", mode, compression=compression)
            yield f"TIFF {compression} {mode}", "TIFF", content
    yield "TIFF group4", "TIFF", saved("TIFF", "1", compression="group4")
    yield "WebP lossless", "WEBP", saved("WEBP", "RGBA", lossless=True)
    yield "PNG transparent colour", "PNG", saved("PNG", "RGB", transparency=(1, 2, 3))
    for bits in (1, 2, 4):
        yield f"PNG palette of {bits}", "PNG", saved("PNG", "P", bits=bits)
    for mode in ("P", "RGB"):
        yield f"TGA run lengths {mode}", "TGA", saved("TGA", mode, compression="tga_rle")
    yield "TGA bottom up", "TGA", saved("TGA", "RGB", orientation=1)


def by_opencv():
    images = {"grey": BGR[..., 1], "BGR": BGR, "BGRA": np.dstack([BGR, BGR[..., 0]])}
    suffixes = {".png": "PNG", ".bmp": "BMP", ".webp": "WEBP", ".jp2": "JPEG2000", ".jpg": "JPEG"}
    for (suffix, kind), (name, image) in itertools.product(suffixes.items(), images.items()):
        if suffix == ".jp2":  # OpenCV writes no smaller ones
            image = cv2.resize(image, (80, 70))
        if (suffix, name) != (".jpg", "BGRA"):
            yield f"OpenCV {kind} {name}", kind, encoded(suffix, image)
    for suffix, kind in ((".ppm", "PPM"), (".sr", "SUN"), (".tiff", "TIFF"), (".png", "PNG")):
        yield f"OpenCV {suffix} BGR", kind, encoded(suffix, BGR)
        if kind != "SUN":
            yield f"OpenCV {suffix} 16 bits", kind, encoded(suffix, DEEP)
    bilevel = encoded(".png", (BGR[..., 0] > 99).astype(np.uint8) * 255, cv2.IMWRITE_PNG_BILEVEL, 1)
    yield "OpenCV PNG of 1 bit", "PNG", bilevel


def by_libjpeg_turbo():
    options = {
        "baseline": {},
        "optimized": {"optimize": 1},
        "progressive": {"progressive": 1},
        "arithmetic": {"arithmetic": 1},
        "arithmetic progressive": {"arithmetic": 1, "progressive": 1},
        "restart": {"restart_blocks": 2},
        "restart rows": {"restart_rows": 1},
    }
    for subsampling, (name, parameters) in itertools.product(SUBSAMPLING, options.items()):
        content = turbo_jpeg(BGR, subsampling, **parameters)
        yield f"JPEG {subsampling} {name}", "JPEG", content
    four = np.asarray(PHOTO.convert("CMYK"))
    yield "JPEG RGB", "JPEG", turbo_jpeg(BGR, colorspace=RGB)
    yield "JPEG CMYK", "JPEG", turbo_jpeg(four, colorspace=CMYK)
    yield "JPEG YCCK", "JPEG", turbo_jpeg(four, colorspace=YCCK)
    yield "JPEG YCCK 420", "JPEG", turbo_jpeg(four, "420", colorspace=YCCK)
    yield "JPEG lossless", "JPEG", turbo_jpeg(BGR, lossless=1)
    yield "JPEG lossless grey", "JPEG", turbo_jpeg(BGR, "grey", lossless=1)


FILES = [*by_pillow(), *by_opencv(), *by_libjpeg_turbo()]
IDS = [name for name, _, _ in FILES]


def name_of(kind):
    return "x.tga" if kind == "TGA" else "x"


@pytest.mark.parametrize(("kind", "content"), [row[1:] for row in FILES], ids=IDS)
def test_the_pixels_are_pillows(tmp_path, kind, content):
    """Also of a part, at full scale and reduced, and with other data behind the image."""
    expected = as_pillow_reads(content)
    assert identify(content, name_of(kind)).name == kind
    whole = decoding.decode_content(content, name_of(kind))
    assert whole.dtype == np.uint8 and whole.flags.c_contiguous
    np.testing.assert_array_equal(whole, expected)
    path = tmp_path / name_of(kind)
    path.write_bytes(content + b"MotionPhoto_Data" + bytes(5000))
    np.testing.assert_array_equal(decoding.decode(path), expected)
    part = decoding.decode_crop(path, lambda h, w: Box(8, 16, 20, 16), 300)
    inner = part[:, 2:-2].astype(int)  # at its edges colours that are subsampled have no neighbour
    np.testing.assert_array_equal(inner, expected[8:28, 18:30])
    reduced = decoding.decode_crop(path, lambda h, w: Box(0, 0, 28, 36), 7)
    if kind != "JPEG" or b"\xff\xc3" in content:  # lossless
        np.testing.assert_array_equal(reduced, expected[:28, :36])
    else:
        assert reduced.shape == (7, 9, 3)
        np.testing.assert_array_equal(reduced[:, :-1], as_pillow_reads(content, 4)[:7, :8])


@pytest.mark.parametrize(("kind", "content"), [row[1:] for row in FILES], ids=IDS)
def test_truncated_ones_are_refused(kind, content):
    for part in (0.3, 0.6, 0.85):
        with pytest.raises(BadImageError):
            decoding.decode_content(content[: int(part * len(content))], name_of(kind))


def test_there_are_files_of_all_formats():
    assert {kind for _, kind, _ in FILES} | {"PAM", "HDR"} == {row.name for row in FORMATS}
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in SUFFIXES)
    assert {".jfif", ".jpe", ".avif", ".jp2", ".tga", ".pgm", ".ppm", ".gif"} < SUFFIXES


@pytest.mark.parametrize("page", ["docs/data.md", "docs/zh/data.md"])
def test_the_table_of_the_documentation_is_that_of_the_code(page):
    rows = [f"| {row.name} | `{row.suffixes}` | {row.decoder} |" for row in FORMATS]
    assert "\n".join(rows) in (ROOT / page).read_text()


def test_two_formats_that_opencv_alone_reads():
    for image in (BGR, BGR[..., 0]):
        expected = image if image.ndim == 3 else cv2.merge([image] * 3)
        np.testing.assert_array_equal(
            decoding.decode_content(encoded(".pam", image), "x"), expected
        )
    bright = decoding.decode_content(encoded(".hdr", BGR.astype(np.float32) / 255), "x")
    assert abs(bright.astype(int) - BGR).max() <= 3


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".pgm"])
def test_grey_of_sixteen_bits_keeps_the_upper_eight(suffix):
    """Pillow's own conversion to RGB makes it white."""
    deep = np.tile(DEEP[..., 0], (3, 3))
    image = decoding.decode_content(encoded(suffix, deep), "x")
    np.testing.assert_array_equal(image, cv2.merge([(deep >> 8).astype(np.uint8)] * 3))


def test_grey_tiffs_of_twelve_bits_keep_the_upper_eight():
    grey = np.arange(0, 4096, 64, dtype=np.uint16).reshape(8, 8)  # two numbers in three bytes
    first, second = grey.ravel()[::2], grey.ravel()[1::2]
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], 1)
    entries = [(256, 8), (257, 8), (258, 12), (259, 1), (262, 1), (273, 134), (277, 1), (278, 8),
               (279, 96)]  # fmt: skip
    header = b"II*\0" + struct.pack("<IH", 8, len(entries))
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in entries)
    content = (header + table).ljust(134, b"\0") + packed.astype(np.uint8).tobytes()
    image = decoding.decode_content(content, "x")
    np.testing.assert_array_equal(image, cv2.merge([(grey >> 4).astype(np.uint8)] * 3))


def test_values_of_32_bits_have_no_range():
    for values in (BGR[..., 0].astype(np.float32), BGR.astype(np.float32)):
        with pytest.raises(BadImageError):
            decoding.decode_content(encoded(".tiff", values), "x")
    with pytest.raises(BadImageError):
        decoding.decode_content(saved("TIFF", "I"), "x")


def test_jpegs_of_twelve_bits_are_refused():
    content = turbo_jpeg(BGR.astype(np.int16) * 16, bits=12)
    with pytest.raises(BadImageError):
        decoding.decode_content(content, "x")


# ---------------------------------------------------------------- BMP and PNG, by hand


def few(rng, count):
    return rng.integers(0, 256, (count, 3), np.uint8)[rng.integers(0, count, (11, 13))]


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("header", [12, 40, 108, 124])
@pytest.mark.parametrize("bits", [1, 4, 8, 24])
def test_bmp(rng, bits, header, top_down):
    pixels = few(rng, {1: 2, 4: 16}.get(bits, 200))
    top_down = top_down and header > 12
    content, expected = bmp(pixels, bits, header=header, top_down=top_down)
    np.testing.assert_array_equal(decoding.decode_content(content, "x")[..., ::-1], expected)


@pytest.mark.parametrize("bits", [4, 8])
def test_bmp_of_run_lengths(rng, bits):
    content, expected = bmp(few(rng, 12), bits, rle=True)
    np.testing.assert_array_equal(decoding.decode_content(content, "x")[..., ::-1], expected)


MASKS = [
    (16, None),
    (16, (0x7C00, 0x3E0, 0x1F)),
    (16, (0xF800, 0x7E0, 0x1F)),
    (32, None),
    (32, (0xFF0000, 0xFF00, 0xFF)),
    (32, (0xFF000000, 0xFF0000, 0xFF00)),
]


@pytest.mark.parametrize("top_down", [False, True])
@pytest.mark.parametrize("header", [40, 108])
@pytest.mark.parametrize(("bits", "masks"), MASKS)
def test_bmp_with_masks(rng, bits, masks, header, top_down):
    pixels = rng.integers(0, 256, (11, 13, 3), np.uint8)
    content, expected = bmp(pixels, bits, masks, header=header, top_down=top_down)
    np.testing.assert_array_equal(decoding.decode_content(content, "x")[..., ::-1], expected)


def test_bmp_with_masks_that_pillow_does_not_know_is_refused(rng):
    content, _ = bmp(rng.integers(0, 256, (11, 13, 3), np.uint8), 16, (0xF00, 0xF0, 0xF))
    with pytest.raises(BadImageError):
        decoding.decode_content(content, "x")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(
    ("color_type", "channels", "depths"),
    [(0, 1, (1, 2, 4, 8, 16)), (2, 3, (8, 16)), (3, 1, (1, 2, 4, 8)), (4, 2, (8, 16)),
     (6, 4, (8, 16))],
)  # fmt: skip
def test_png_of_each_kind(rng, color_type, channels, depths, interlaced):
    for bits, shape in itertools.product(depths, ((11, 13), (1, 1), (3, 2))):
        samples = rng.integers(0, 1 << bits, (*shape, channels))
        palette = rng.integers(0, 256, (1 << bits, 3), np.uint8) if color_type == 3 else None
        values = samples >> 8 if bits == 16 else samples * 255 // ((1 << bits) - 1)
        rgb = {3: values[..., :3], 1: values[..., [0, 0, 0]]}[3 if channels > 2 else 1]
        expected = rgb if palette is None else palette[samples[..., 0]]
        content = png(samples, bits, color_type, palette, interlaced)
        np.testing.assert_array_equal(decoding.decode_content(content, "x")[..., ::-1], expected)
