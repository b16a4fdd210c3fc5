"""Class folders written in each other form that holds image files."""

import io
import os
import tarfile
import zipfile
import zlib


def add(archive, name, content):
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def tar(path, folder, below=""):
    """A tar of a folder, in the order of the file system."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        archive.add(folder, below or folder.name)
    return path


def write_zip(path, folder, compression):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        for file in sorted(folder.rglob("*"), reverse=True):
            archive.write(file, file.relative_to(folder.parent))
    return path


def images(root, split):
    """(class, name below the class, file) of the images of a split, in some other order."""
    files = sorted((root / split).rglob("*.jpg"), key=lambda file: zlib.crc32(bytes(file)))
    parts = [file.relative_to(root / split).parts for file in files]
    return [
        (folder, "/".join(below), file) for (folder, *below), file in zip(parts, files, strict=True)
    ]


def shards(root, split, target, count=3, label="cls", numbers=True):
    """Shards of WebDataset, with labels in .cls or .json files."""
    target.mkdir(parents=True, exist_ok=True)
    classes = sorted(entry.name for entry in (root / split).iterdir())
    for number in range(count):
        with tarfile.open(target / f"{split}-{number:04d}.tar", "w") as archive:
            for name, below, file in images(root, split)[number::count]:
                key = below.removesuffix(".jpg").replace(".", "_")
                value = classes.index(name) if numbers else name
                content = str(value) if label == "cls" else f'{{"label": {value!r}, "width": 3}}'
                # a key is a sample's own in its shard
                add(archive, f"{name}+{key}.{label}", content.replace("'", '"').encode())
                add(archive, f"{name}+{key}.jpg", file.read_bytes())
    return target


def _one_tar(root, target):
    return tar(target / "photos.tar", root), None


def _two_tars(root, target):
    tar(target / "train.tar", root / "train", "./")
    return tar(target / "val.tar", root / "val").parent, None


def _nested(root, target):
    """A tar of one tar for each class, as ImageNet's, and a flat one with a list."""
    target.mkdir()
    with tarfile.open(target / "my_img_train.tar", "w") as archive:
        for folder in sorted((root / "train").iterdir(), reverse=True):
            tar(target / "part", folder, "./")
            archive.add(target / "part", f"{folder.name}.tar")
    os.remove(target / "part")
    with (
        tarfile.open(target / "my_img_val.tar", "w") as archive,
        open(target / "val_label.txt", "w") as labels,
    ):
        for name, below, file in images(root, "val"):
            add(archive, f"{name}_{below}", file.read_bytes())
            labels.write(f"{name}_{below} {name}\n")
    return target, None


def _tar_a_class(root, target):
    for split in ("train", "val"):
        for folder in (root / split).iterdir():
            if split == "train":
                tar(target / split / f"{folder.name}.tar", folder, "./")
            else:
                tar(target / split / f"{folder.name}.tar", folder)
    return target, None


def _flat(root, target, rows, header=""):
    """Class folders for training, and a flat folder for validation."""
    (target / "val").mkdir(parents=True)
    os.symlink(root / "train", target / "train")
    lines = []
    for label, (name, below, file) in zip_labels(root):
        (target / "val" / f"{name}_{below}").write_bytes(file.read_bytes())
        lines.append(rows.format(file=f"{name}_{below}", stem=f"{name}_{below}"[:-4], name=name,
                                 label=label))  # fmt: skip
    return header + "\n".join(lines) + "\n"


def zip_labels(root):
    classes = sorted(entry.name for entry in (root / "val").iterdir())
    return [(classes.index(sample[0]), sample) for sample in images(root, "val")]


def _flat_numbers(root, target):
    text = _flat(root, target, "{file} {label}")
    (target / "val_label.txt").write_text(text)
    return target, None


def _flat_csv(root, target):
    text = _flat(root, target, "{stem},{name} 1 2 3 4 {name} 5 6 7 8", "ImageId,PredictionString\n")
    (target / "solution.csv").write_text(text)
    return target, target / "solution.csv"


def _shards(root, target, **options):
    for split in ("train", "val"):
        shards(root, split, target / "shards", **options)
    return target / "shards"


FORMS = {
    "a tar": _one_tar,
    "a tar for each split": _two_tars,
    "a zip": lambda root, target: (write_zip(target / "a.zip", root, zipfile.ZIP_STORED), None),
    "a deflated zip": lambda root, target: (
        write_zip(target / "a.zip", root, zipfile.ZIP_DEFLATED), None
    ),
    "a tar of tars, flat tar and list": _nested,
    "a tar for each class": _tar_a_class,
    "flat with numbers": _flat_numbers,
    "flat with Kaggle's table": _flat_csv,
    "shards": lambda root, target: (_shards(root, target), None),
    "shards of a pattern": lambda root, target: (
        f"{_shards(root, target)}/{{train,val}}-{{0000..0002}}.tar", None
    ),
    "shards with json": lambda root, target: (
        _shards(root, target, label="json", numbers=False), None
    ),
}  # fmt: skip
