"""Image files of kinds that neither OpenCV nor Pillow writes, for the tests of decoding."""

import ctypes
import struct
import zlib

import numpy as np

from data import jpeg

# ---------------------------------------------------------------- BMP


def _rows(lines, top_down):
    """Lines of bytes, each filled up to four, in the order of a BMP."""
    lines = [line + bytes(-len(line) % 4) for line in lines]
    return b"".join(lines if top_down else lines[::-1])


def _packed(indices, bits):
    """Rows of palette indices of 1, 4 or 8 bits."""
    per_byte = 8 // bits
    for row in indices:
        row = np.concatenate([row, np.zeros(-len(row) % per_byte, row.dtype)])
        shifts = np.arange(8 - bits, -1, -bits)
        yield (
            (row.reshape(-1, per_byte).astype(int) << shifts).sum(axis=1).astype(np.uint8).tobytes()
        )


def _run_lengths(indices, bits):
    """Rows of RLE8 or RLE4: absolute runs of four where it can be, encoded ones elsewhere."""
    out = b""
    for row in indices[::-1]:
        at = 0
        while at < len(row):
            part = row[at : at + 4]
            if len(part) == 4 and at % 8 == 0:
                raw = part.tobytes() if bits == 8 else next(_packed(part[None], 4))
                out += bytes([0, 4]) + raw + bytes(len(raw) % 2)
            else:
                part = part[:1]
                value = int(part[0])
                out += bytes([1, value if bits == 8 else value << 4])
            at += len(part)
        out += b"\0\0"  # the end of a line
    return out + b"\0\1"


def bmp(pixels, bits, masks=None, rle=False, top_down=False, header=40):
    """A BMP of uint8 RGB [H, W, 3] pixels, and the pixels that it holds.

    Up to 8 bits there is a palette of the pixels' own colours, of which there must be few enough;
    `masks` are those of red, green and blue for 16 and 32 bits.
    """
    height, width = pixels.shape[:2]
    palette, data, compression, mask_bytes = b"", b"", 0, b""
    if bits <= 8:
        colours, indices = np.unique(pixels.reshape(-1, 3), axis=0, return_inverse=True)
        assert len(colours) <= 1 << bits
        indices = indices.reshape(height, width).astype(np.uint8)
        table = np.zeros((1 << bits, 3 if header == 12 else 4), np.uint8)
        table[: len(colours), :3] = colours[:, ::-1]
        palette = table.tobytes()
        if rle:
            data, compression = _run_lengths(indices, bits), {8: 1, 4: 2}[bits]
        else:
            data = _rows(list(_packed(indices, bits)), top_down)
    elif bits == 24:
        data = _rows([row[:, ::-1].tobytes() for row in pixels], top_down)
    else:
        compression = 0 if masks is None else 3
        masks = masks or ((0x7C00, 0x3E0, 0x1F) if bits == 16 else (0xFF0000, 0xFF00, 0xFF))
        values, shown = np.zeros((height, width), np.uint32), np.zeros_like(pixels)
        for channel, mask in enumerate(masks):
            low = (mask & -mask).bit_length() - 1
            depth = mask.bit_length() - low
            level = pixels[..., channel].astype(np.uint32) >> (8 - depth)
            values |= level << low
            shown[..., channel] = level * 255 // ((1 << depth) - 1)
        pixels = shown
        kind = np.uint16 if bits == 16 else np.uint32
        data = _rows([row.astype(kind).tobytes() for row in values], top_down)
        if compression:
            mask_bytes = struct.pack("<3I", *masks)
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
    else:
        sign = -1 if top_down else 1
        sizes = struct.pack("<IiiHHIIiiII", header, width, sign * height, 1, bits, compression,
                            len(data), 2835, 2835, 0, 0)  # fmt: skip
        info = sizes + mask_bytes + (bytes(header - 40 - len(mask_bytes)) if header > 40 else b"")
    start = 14 + len(info) + len(palette)
    head = b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start)
    return head + info + palette + data, pixels


# ---------------------------------------------------------------- PNG


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(samples, bits, color_type, palette=None, interlaced=False):
    """A PNG of samples [H, W, C] below 2 ** bits, interlaced by Adam7's passes or not."""
    height, width = samples.shape[:2]
    passes = [(0, 0, 1, 1)]
    if interlaced:
        passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2),
                  (0, 1, 2, 2), (1, 0, 2, 1)]  # fmt: skip
    raw = b""
    for top, left, down, right in passes:
        part = samples[top::down, left::right]
        for row in part if part.size else []:
            if bits == 16:
                line = row.astype(">u2").tobytes()
            else:
                line = next(_packed(row.reshape(1, -1).astype(np.uint8), bits))
            raw += b"\0" + line
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlaced)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(raw)), (b"IEND", b"")]
    if palette is not None:
        chunks.insert(1, (b"PLTE", palette.tobytes()))
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


# ---------------------------------------------------------------- JPEG

# TurboJPEG's parameters, colour spaces and pixel formats
_PARAMETERS = {
    "quality": 3,
    "subsampling": 4,
    "colorspace": 8,
    "optimize": 11,
    "progressive": 12,
    "arithmetic": 14,
    "lossless": 15,
    "restart_blocks": 18,
    "restart_rows": 19,
}
RGB, YCCK, CMYK = 0, 4, 3
SUBSAMPLING = ("444", "422", "420", "grey", "440", "411", "441")
_BGR, _CMYK = 1, 11


def turbo_jpeg(pixels, subsampling="444", bits=8, **parameters):
    """A JPEG of pixels, uint8 BGR [H, W, 3] or CMYK [H, W, 4], written by libjpeg-turbo."""
    library = jpeg._library()
    pixels = np.ascontiguousarray(pixels)
    handle = library.tj3Init(0)
    library.tj3Set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    wanted = {"quality": 90, "subsampling": SUBSAMPLING.index(subsampling)} | parameters
    for name, value in wanted.items():
        assert library.tj3Set(handle, _PARAMETERS[name], value) == 0
    content, size = ctypes.c_void_p(), ctypes.c_size_t()
    compress = getattr(library, f"tj3Compress{bits}")
    pointer, integer = ctypes.c_void_p, ctypes.c_int
    compress.argtypes = [pointer, pointer, integer, integer, integer, integer, pointer, pointer]
    kind = _BGR if pixels.shape[2] == 3 else _CMYK
    height, width = pixels.shape[:2]
    failed = compress(
        handle, pixels.ctypes.data, width, 0, height, kind,
        ctypes.addressof(content), ctypes.addressof(size),
    )  # fmt: skip
    assert not failed
    written = ctypes.string_at(content.value, size.value)
    library.tj3Free.argtypes = [pointer]
    library.tj3Free(content)
    library.tj3Destroy(handle)
    return written


def jpeg_segments(content):
    """(marker, segment) of each segment of a JPEG before its scan, then the rest of it."""
    at = 2
    while content[at + 1] != 0xDA:
        size = 2 + int.from_bytes(content[at + 2 : at + 4], "big")
        yield content[at + 1], content[at : at + size]
        at += size
    yield 0xDA, content[at:]


def without(content, *markers):
    """A JPEG without the segments of these markers."""
    return content[:2] + b"".join(
        part for kind, part in jpeg_segments(content) if kind not in markers
    )
