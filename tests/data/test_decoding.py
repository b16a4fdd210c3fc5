"""Image files: what is wrong with them, and what is decoded of them."""

import io
import struct
import time
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from data import decoding, jpeg
from data.decoding import BadImageError
from data.jpeg import Box


@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "header"])
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_a_broken_image_is_named(tmp_path, rng, damage, suffix):
    path = tmp_path / f"broken{suffix}"
    cv2.imwrite(str(path), rng.integers(0, 256, (64, 64, 3), np.uint8))
    whole = path.read_bytes()
    assert decoding.decode(path).shape == (64, 64, 3)
    cut = {"truncated": whole[: len(whole) // 2], "empty": b"", "noise": rng.bytes(500)}
    path.write_bytes(cut.get(damage, whole[:30]))
    with pytest.raises(BadImageError, match=f"the image .*broken{suffix} is corrupt or truncated"):
        decoding.decode(path)


def test_a_jpeg_cut_after_its_thumbnail_is_still_seen_as_cut(tmp_path, rng):
    """An EXIF thumbnail is a JPEG within the JPEG, with an end marker of its own."""
    thumbnail = cv2.imencode(".jpg", rng.integers(0, 256, (16, 16, 3), np.uint8))[1].tobytes()
    whole = cv2.imencode(".jpg", rng.integers(0, 256, (64, 64, 3), np.uint8))[1].tobytes()
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    path = tmp_path / "camera.jpg"
    path.write_bytes(whole[:2] + segment + whole[2:])
    assert decoding.decode(path).shape == (64, 64, 3)
    path.write_bytes((whole[:2] + segment + whole[2:])[:-500])
    with pytest.raises(BadImageError):
        decoding.decode(path)


def photo(path, rng, shape=(150, 210), chroma=cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444, **options):
    """A smooth picture, as photographs are, in a real JPEG file."""
    small = rng.integers(0, 256, (8, 10, 3), np.uint8)
    image = cv2.resize(small, shape[::-1], interpolation=cv2.INTER_CUBIC)
    settings = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, chroma]
    for name, value in options.items():
        settings += [getattr(cv2, f"IMWRITE_JPEG_{name.upper()}"), value]
    assert cv2.imwrite(str(path), image, settings)
    return path


def with_exif(path, orientation):
    """The file with an EXIF block in front that names the orientation, big-endian."""
    entry = b"\x01\x12\0\x03\0\0\0\x01\0" + bytes([orientation]) + b"\0\0"
    tiff = b"MM\0\x2a\0\0\0\x08\0\x01" + entry + b"\0\0\0\0"
    block = b"Exif\0\0" + tiff
    content = path.read_bytes()
    length = (len(block) + 2).to_bytes(2, "big")
    path.write_bytes(content[:2] + b"\xff\xe1" + length + block + content[2:])
    return path


CHROMA = {
    name: getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}") for name in ("444", "422", "420")
}
BOXES = [Box(0, 0, 150, 210), Box(37, 51, 60, 80), Box(149, 209, 1, 1), Box(3, 100, 147, 110)]


@pytest.mark.parametrize("options", [{}, {"progressive": 1}, {"rst_interval": 4}])
@pytest.mark.parametrize("chroma", CHROMA)
def test_a_part_of_a_jpeg_equals_that_part_of_the_whole(tmp_path, rng, chroma, options):
    path = photo(tmp_path / "a.jpg", rng, chroma=CHROMA[chroma], **options)
    whole = decoding.decode(path).astype(int)
    for box in BOXES:
        part = decoding.decode_crop(path, lambda h, w, box=box: box, 300)
        assert part.shape == (box.height, box.width, 3)
        expected = whole[box.top :, box.left :][: box.height, : box.width]
        difference = abs(part - expected)
        if chroma == "444":
            assert difference.max() == 0
        assert difference[:, 2:-2].max(initial=0) == 0  # the edge has no neighbour to blend with
        assert difference.max() <= 24


def test_libjpeg_turbo_does_it(tmp_path, rng):
    """And not OpenCV, which would give the same pixels in more time."""
    content = photo(tmp_path / "a.jpg", rng).read_bytes()
    assert jpeg.decode_box(content, BOXES[1], 1).shape == (60, 80, 3)


@pytest.mark.parametrize("damage", ["header", "scan"])
def test_a_broken_jpeg_leaves_the_next_one_alone(tmp_path, rng, damage):
    """They are decoded by the same decompressor."""
    whole = photo(tmp_path / "a.jpg", rng).read_bytes()
    expected = jpeg.decode_box(whole, BOXES[1], 1)
    broken = whole[: {"header": 30, "scan": len(whole) // 2}[damage]]
    jpeg.decode_box(broken, BOXES[3], 2)
    np.testing.assert_array_equal(jpeg.decode_box(whole, BOXES[1], 1), expected)


@pytest.mark.parametrize("side, reduction", [(65, 1), (64, 2), (33, 2), (32, 4), (16, 8), (2, 8)])
@pytest.mark.parametrize("turbo", [True, False])
def test_the_scale_is_as_small_as_the_crop_allows(
    tmp_path, rng, monkeypatch, side, reduction, turbo
):
    if not turbo:
        monkeypatch.setattr(jpeg, "_library", lambda: None)
    path = photo(tmp_path / "a.jpg", rng, (301, 411), CHROMA["420"])
    box = Box(40, 56, 128, 200)
    part = decoding.decode_crop(path, lambda h, w: box, side)
    assert part.shape == (128 // reduction, 200 // reduction, 3)
    whole = decoding.decode(path)
    expected = whole[box.top :, box.left :][: box.height, : box.width]
    expected = cv2.resize(expected, part.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert abs(part.astype(int) - expected).mean() < 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_photographs_are_upright(tmp_path, rng, orientation):
    path = with_exif(photo(tmp_path / "a.jpg", rng), orientation)
    whole = decoding.decode(path)
    assert whole.shape == ((150, 210, 3) if orientation < 5 else (210, 150, 3))
    seen = []
    part = decoding.decode_crop(path, lambda h, w: seen.append((h, w)) or Box(20, 30, 90, 70), 100)
    assert seen == [whole.shape[:2]]
    np.testing.assert_array_equal(part, whole[20:110, 30:100])


def test_grey_and_four_colour_jpegs_and_other_formats_too(tmp_path, rng):
    from PIL import Image

    small = Image.fromarray(rng.integers(0, 256, (6, 8, 3), np.uint8)).resize((80, 60))
    for name, mode in (
        ("grey.jpg", "L"),
        ("cmyk.jpg", "CMYK"),
        ("a.png", "RGB"),
        ("a.webp", "RGB"),
    ):
        small.convert(mode).save(tmp_path / name)
        whole = decoding.decode(tmp_path / name)
        part = decoding.decode_crop(tmp_path / name, lambda h, w: Box(8, 16, 32, 48), 64)
        np.testing.assert_array_equal(part, whole[8:40, 16:64])


@pytest.mark.parametrize("damage", ["truncated", "empty", "noise", "header", "absent"])
def test_a_broken_file_is_named_whatever_of_it_is_wanted(tmp_path, rng, damage):
    path = photo(tmp_path / "broken.jpg", rng)
    whole = path.read_bytes()
    cut = {"truncated": whole[:-20], "empty": b"", "noise": rng.bytes(500), "header": whole[:30]}
    if damage == "absent":
        path.unlink()
    else:
        path.write_bytes(cut[damage])
    with pytest.raises(BadImageError, match=r"the image .*broken\.jpg"):
        decoding.decode_crop(path, lambda h, w: Box(0, 0, 1, 1), 1)


def saved(image, kind, **options):
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


MODES = {
    "PNG": ["L", "LA", "RGBA", "P", "1", "animation"],
    "JPEG": ["L", "CMYK"],
    "GIF": ["L", "RGB", "RGBA", "P", "1", "animation"],
    "WEBP": ["RGB", "RGBA", "animation"],
    "TIFF": ["L", "LA", "RGB", "RGBA", "P", "1", "CMYK", "animation"],
}


@pytest.mark.parametrize(
    ("kind", "mode"), [(kind, m) for kind, modes in MODES.items() for m in modes]
)
def test_images_of_any_mode(rng, kind, mode):
    """Of an animation the first picture; all as Pillow, which wrote the file, reads it."""
    pixels = rng.integers(0, 256, (24, 30, 3), np.uint8)
    image, options = Image.fromarray(pixels), {"lossless": True} if kind == "WEBP" else {}
    if mode == "animation":
        options |= {"save_all": True, "append_images": [Image.fromarray(255 - pixels)]}
    else:
        image = image.convert(mode)
    content = saved(image, kind, **options)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).astype(int)
    found = decoding.decode_content(content, "x")
    assert found.shape == (24, 30, 3) and found.dtype == np.uint8
    assert abs(found[..., ::-1] - expected).max() <= (1 if mode == "CMYK" else 0)


@pytest.mark.parametrize("kind", ["png", "tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_become_eight(rng, kind, channels):
    deep = rng.integers(0, 1 << 16, (24, 30, channels), np.uint16)
    content = cv2.imencode(f".{kind}", deep)[1].tobytes()
    difference = decoding.decode_content(content, "x") - deep / 256
    assert abs(difference).max() < 1.5


def test_a_broken_gif(rng):
    whole = saved(Image.fromarray(rng.integers(0, 256, (60, 60, 3), np.uint8)), "GIF")
    for content in (whole[: len(whole) // 2], whole[:20], b"GIF8"):
        with pytest.raises(BadImageError, match="x.gif is corrupt or truncated"):
            decoding.decode_content(content, "x.gif")


def test_a_header_of_ten_gigapixels():
    """OpenCV refuses it by an exception."""
    content = bytearray(cv2.imencode(".png", np.zeros((1, 1, 3), np.uint8))[1].tobytes())
    content[16:24] = (100_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    with pytest.raises(BadImageError, match="huge.png is corrupt"):
        decoding.decode_content(bytes(content), "huge.png")


@pytest.mark.parametrize("side", [65_500, 30_000])
def test_a_jpeg_that_says_that_it_is_huge(side):
    """Its missing rows are grey to libjpeg-turbo, in 13 and in 3 GB of memory."""
    content = bytearray(cv2.imencode(".jpg", np.zeros((64, 64, 3), np.uint8))[1].tobytes())
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = side.to_bytes(2, "big") * 2
    with pytest.raises(BadImageError, match="huge.jpg is corrupt"):
        decoding.decode_content(bytes(content), "huge.jpg")


def test_a_size_of_far_more_pixels_than_the_file_can_hold():
    """Missing rows of a TIFF are black to Pillow: half a gigapixel took 13 s and 3 GB."""
    content = saved(Image.new("L", (56, 48)), "TIFF")
    height = struct.pack("<HHII", 257, 4, 1, 48)  # tag, type, count and value
    assert content.count(height) == 1  # another tag gives the rows that are there
    assert decoding.decode_content(content, "x.tif").shape == (48, 56, 3)
    content = content.replace(height, struct.pack("<HHII", 257, 4, 1, 8_781_824))
    begun = time.process_time()
    with pytest.raises(BadImageError, match="x.tif is corrupt or truncated"):
        decoding.decode_content(content, "x.tif")
    assert time.process_time() - begun < 1
