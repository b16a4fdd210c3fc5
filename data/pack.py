"""Pack a data set into one tar with an index, its images optionally made smaller once.

The tar has class folders, in train/ and val/ where the data has such parts; --data takes it. It is
the usual way to make training's reading cheap: one large file instead of a million small ones. An
interrupted run is gone on with by the same command. At the end every file is read back and compared
with its SHA-256, which the tar's last file, SHA256SUMS, lists.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache, partial
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

import cli
import utils

from . import members, readers, tar_writer
from .class_order import with_class_order
from .datasets import Dataset, NoSuchPartError, left_out
from .decoding import BadImageError, ImageFile, decode_content, read
from .members import Member
from .resizing import by_pillow

EXAMPLES = """\
  python -m data.pack imagenet imagenet-256.tar --size 256
  python -m data.pack 'shards/{train,val}-{0000..0063}.tar' imagenet.tar
  python -m data.pack imagenet-256.tar --check
"""
_AHEAD = 64  # images in preparation
_JPEG = (".jpg", ".jpeg", ".jpe", ".jfif")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Return the parsed command line."""
    parser = cli.ArgumentParser(__doc__, EXAMPLES, prog="python -m data.pack")
    parser.add_argument("source", metavar="SRC", help="any data that --data of train.py takes")
    parser.add_argument("target", metavar="DST", nargs="?", help="tar to write")
    cli.add_flags(parser, "--val-list", "--skip-bad-images")
    cli.add_flags(
        parser,
        "--size",
        help="short side in pixels of images that are larger, which are resized, antialiased, and "
        "encoded as JPEG; without it files are copied as they are",
    )
    parser.add_argument(
        "--quality",
        type=cli.number(int, 1, 100),
        metavar="Q",
        help="quality of the JPEGs that --size makes, from 1 to 100 (default: 95)",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="compare the files in the tar SRC with its list of checksums, and write nothing",
    )
    args = parser.parse_args(argv)
    if bool(args.target) == args.check:
        parser.error("give SRC and DST, or SRC and --check")
    if args.check and (args.size or args.quality or args.val_list or args.skip_bad_images):
        parser.error("--check takes SRC alone; leave the other flags out")
    if args.quality and not args.size:
        parser.error("--quality is that of the JPEGs that --size makes; give --size PIXELS too")
    args.quality = args.quality or 95
    if args.target and not args.target.endswith(".tar"):
        parser.error(f"DST {args.target!r} does not end in .tar")
    return args


def main(argv: list[str] | None = None) -> int:
    """Pack or check as the command line says; returns the exit status."""
    args = parse_args(argv)
    if args.check:
        print(f"{args.source}: all {tar_writer.check(Path(args.source))} files are as written")
        return 0
    target = Path(args.target)
    parts = _parts(args.source, args.val_list)
    for warning in left_out(list(parts.values())):
        print(warning)
    about = {
        "source": os.path.abspath(args.source),
        "size": args.size,
        "quality": args.quality if args.size else None,
        "images": {name: _digest(part) for name, part in parts.items()},
    }
    skipped: list[str] = []

    def files(done: list[str]) -> Iterator[tuple[str, bytes]]:
        for folder, part in parts.items():
            yield from _files(folder, part, {*done}, args, skipped)

    count = sum(map(len, parts.values()))
    if not tar_writer.write_tar(target, about, count, files, "packing"):
        print(f"{target} is there already, packed from the same images")
        return 0
    if skipped:
        print(f"{len(skipped)} bad images were skipped, the first of them {skipped[0]}")
    how = f", larger ones at a short side of {args.size} px as JPEG of quality {args.quality}"
    print(
        f"{target}: {count - len(skipped)} images, {target.stat().st_size / 1e9:.2f} GB"
        f"{how if args.size else ', as they are'}; all read back as written"
    )
    return 0


def _parts(source: str, labels: str | None) -> dict[str, Dataset]:
    """Return the parts of the data by the folder that they get: "" where there are none."""
    try:
        train = readers.open_dataset(source, "train")
    except NoSuchPartError as error:
        try:
            val = readers.open_dataset(source, "val", labels=labels)
        except NoSuchPartError:
            raise error from None
        print(f"warning: there is no training set to pack: {error}")
        return {"val/": val}
    if train.whole:
        return {"": train}
    try:
        val = readers.open_dataset(source, "val", labels=labels)
    except NoSuchPartError as error:
        print(f"warning: there is no validation set to pack: {error}")
        return {"train/": train}
    return {"train/": train, "val/": with_class_order(val, len(train.classes), train.classes)}


def _digest(part: Dataset) -> str:
    """Return a digest of the images' names and files' versions, or of pixels and their labels."""
    if isinstance(part.images, np.ndarray):
        labels = part.labels.tobytes() + "\0".join(part.classes).encode(errors="surrogateescape")
        return tar_writer.sha256(part.images.tobytes() + labels)
    with ThreadPoolExecutor(16) as pool:  # on a network drive each answer takes a while
        versions = pool.map(cache(_version), map(_file_of, part.images))
        lines = [f"{name}\0{one}" for name, one in zip(part.names, versions, strict=True)]
    return tar_writer.sha256("\n".join(lines).encode(errors="surrogateescape"))


def _file_of(image: ImageFile) -> str:
    return image.archive if isinstance(image, Member) else os.fspath(image)


def _version(path: str) -> str:
    """Return a file's size and the time of its last change; "" where it cannot be read.

    What was unpacked into the cache, and may be again, is the same where it says so.
    """
    if utils.cache_folder() in Path(path).parents:
        return tar_writer.said_to_be_of(Path(path))
    with suppress(OSError):
        return " ".join(map(str, members.version(path)))
    return ""


def _files(
    folder: str, part: Dataset, done: set[str], args: argparse.Namespace, skipped: list[str]
) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of the images of a part that are not in the tar yet."""
    width = len(str(len(part.classes) - 1))
    names = tar_writer.told_apart([_name(folder, part, i, width) for i in range(len(part))])
    images = ((name, part.images[index]) for index, name in enumerate(names))
    prepare = partial(_prepared, size=args.size, quality=args.quality, skip=args.skip_bad_images)
    done_as_jpeg = done - {*names}
    waiting = (row for row in images if row[0] not in done and f"{row[0]}.jpg" not in done_as_jpeg)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while batch := list(islice(waiting, _AHEAD)):
            for (name, _), result in zip(batch, pool.map(prepare, batch), strict=True):
                if result is None:
                    skipped.append(name)
                    tqdm.write(f"skipped {utils.shown(name)}")
                else:
                    yield result


def _name(folder: str, part: Dataset, index: int, width: int) -> str:
    """Return the name of an image in the tar: PART/CLASS/FILE."""
    if not part.names:
        label = int(part.labels[index])
        name = part.classes[label].replace("/", "-")
        # the classes' order must be that of their names
        if sorted(part.classes) != part.classes:
            name = f"{label:0{width}d}-{name}"
        return f"{folder}{name}/{index:06d}.png"
    name = part.names[index].replace("\n", "_")
    if part.numbered:
        number, _, below = name.partition("/")
        known = part.classes[int(number)]
        name = f"{int(number):0{width}d}/{below}" if known == number else f"{known}/{below}"
    return f"{folder}{name}"


def _prepared(
    row: tuple[str, ImageFile | np.ndarray], size: int | None, quality: int, skip: bool
) -> tuple[str, bytes] | None:
    """Return an image's name and content as they are to be packed; None for a bad one to skip."""
    name, source = row
    if isinstance(source, np.ndarray):
        return name, cv2.imencode(".png", source)[1].tobytes()
    try:
        content = read(source)
        if size is None:
            return name, content
        image = decode_content(content, source)
    except BadImageError:
        if skip:
            return None
        raise
    height, width = image.shape[:2]
    shortest = min(height, width)
    if shortest <= size:
        return name, content
    height, width = (max(size, round(side * size / shortest)) for side in (height, width))
    image = by_pillow(image, width, height, "bicubic")
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    if not name.lower().endswith(_JPEG):
        name += ".jpg"
    return name, encoded.tobytes()


if __name__ == "__main__":
    utils.run(main)
