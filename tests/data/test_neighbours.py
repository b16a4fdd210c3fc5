"""No image leaves anything behind in a decoder, and decoders leave nothing on the terminal."""

import os
import struct
import threading
import warnings

import cv2
import numpy as np
import pytest

from data import decoding, jpeg
from data.augment import Augmentation
from data.datasets import Dataset
from data.decoding import BadImageError
from data.jpeg import Box
from data.loader import Loader
from data.quiet import quiet
from data.transforms import Preprocessing
from tests.data.image_files import png_chunk, turbo_jpeg, without

HUFFMAN, QUANTIZATION, RESTART = 0xC4, 0xDB, 0xDD


@pytest.fixture
def scene(rng):
    return cv2.resize(rng.integers(0, 256, (6, 8, 3), np.uint8), (96, 64), interpolation=2)


@pytest.fixture
def neighbours(rng, scene):
    """Images with tables, intervals and transforms of their own, and broken ones."""
    noise = rng.integers(0, 256, scene.shape, np.uint8)
    whole = turbo_jpeg(noise, optimize=1, quality=20)
    return {
        "optimized": whole,
        "progressive": turbo_jpeg(noise, progressive=1, quality=95),
        "arithmetic": turbo_jpeg(noise, arithmetic=1),
        "restart": turbo_jpeg(noise, "420", restart_blocks=1, optimize=1),
        "grey": turbo_jpeg(noise, "grey", optimize=1),
        "lossless": turbo_jpeg(noise, lossless=1),
        "broken": whole[: len(whole) // 3] + b"\xff\xd9",
        "no quantization": without(whole, QUANTIZATION),
    }


def test_a_jpeg_without_huffman_tables_has_the_standard_ones(tmp_path, scene, neighbours):
    """As frames of cameras (Motion JPEG) do."""
    for subsampling in ("444", "420", "grey"):
        with_tables = turbo_jpeg(scene, subsampling, restart_blocks=5)
        frame = without(with_tables, HUFFMAN)
        assert len(frame) < len(with_tables) - 150
        expected = decoding.decode_content(with_tables, "x")
        (tmp_path / "frame.jpg").write_bytes(frame)
        for name, content in {"nothing": None, **neighbours}.items():
            if content is not None:
                jpeg.decode_box(content, Box(0, 0, 64, 96), 1)
            np.testing.assert_array_equal(decoding.decode_content(frame, "x"), expected, name)
            part = decoding.decode_crop(tmp_path / "frame.jpg", lambda h, w: Box(8, 0, 9, 96), 99)
            np.testing.assert_array_equal(part, expected[8:17], name)


def test_a_jpeg_without_quantization_tables_has_none(scene, neighbours):
    frame = without(turbo_jpeg(scene), QUANTIZATION)
    for content in neighbours.values():
        jpeg.decode_box(content, Box(0, 0, 64, 96), 1)
        with pytest.raises(BadImageError):
            decoding.decode_content(frame, "x")


def test_workers_give_the_same_pixels_among_such_neighbours(tmp_path, scene, neighbours):
    contents = [*neighbours.values()] * 2
    for place in (3, 7, 8, 13, 18):
        contents.insert(place, without(turbo_jpeg(scene, "420"), HUFFMAN))
    files = [tmp_path / f"{number:02d}.jpg" for number in range(len(contents))]
    for file, content in zip(files, contents, strict=True):
        file.write_bytes(content)
    labels = np.arange(len(files), dtype=np.int32)
    dataset = Dataset("frames", files, labels, [str(label) for label in labels], Augmentation())

    def load(workers, epoch):
        loader = Loader(dataset, Preprocessing(size=32), 7, workers, skip_bad=True)
        batches = loader.evaluation() if epoch is None else loader.training(0, epoch)
        return np.concatenate([images for images, _ in batches])

    for workers, epoch in ((2, None), (2, 0), (3, 0)):
        np.testing.assert_array_equal(load(workers, epoch), load(0, epoch))


# ---------------------------------------------------------------- noise


def noisy_files(scene):
    """Images that are fine, or not, on which libjpeg, libpng, libtiff and Pillow have remarks."""
    png = cv2.imencode(".png", scene)[1].tobytes()
    profile = png_chunk(b"iCCP", b"icc\0\0" + b"no profile")
    yield "profile.png", png[:33] + profile + png[33:], True
    yield "checksum.png", png[:-20] + b"abcd" + png[-16:], False
    jpeg_file = turbo_jpeg(scene)
    yield "extra.jpg", jpeg_file[:-2] + b"\0\1\2\3" + jpeg_file[-2:], True
    yield "hole.jpg", jpeg_file[:-900] + jpeg_file[-700:], True
    tiff = cv2.imencode(".tiff", scene, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes()
    yield "hole.tiff", tiff[:1000] + bytes(3000) + tiff[4000:], False
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x09\x01\x12"
    block = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    yield "exif.jpg", jpeg_file[:2] + block + jpeg_file[2:], True


def test_decoders_are_silent(capfd, scene):
    for name, content, fine in noisy_files(scene):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            if fine:
                assert decoding.decode_content(content, name).shape == scene.shape
            else:
                with pytest.raises(BadImageError, match=name):
                    decoding.decode_content(content, name)
    assert capfd.readouterr() == ("", "")


def test_a_large_image_is_no_reason_to_warn(capfd, monkeypatch):
    from data import pillow

    monkeypatch.setattr(pillow, "_LARGEST", 3000)
    content = cv2.imencode(".bmp", np.zeros((40, 50, 3), np.uint8))[1].tobytes()
    assert decoding.decode_content(content, "x").shape == (40, 50, 3)
    monkeypatch.setattr(pillow, "_LARGEST", 1000)
    with pytest.raises(BadImageError):
        decoding.decode_content(content, "x")
    assert capfd.readouterr() == ("", "")


def test_standard_error_is_there_again(capfd):
    """After an error too, and when several threads decode."""
    with pytest.raises(KeyError), quiet():
        os.write(2, b"hidden")
        raise KeyError

    def work():
        for _ in range(50):
            with quiet():
                pass

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"
