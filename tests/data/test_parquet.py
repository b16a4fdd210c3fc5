"""Hugging Face's parquet: unpacked once, gone on with; hostile and damaged files."""

import json
import os
import subprocess
import sys

import pyarrow
import pytest
from pyarrow import parquet

from data import class_names, tar_writer
from data.readers import class_folders, open_dataset
from tests.data.forms import images
from tests.data.test_readers import assert_same, batches, cache, root  # noqa: F401
from tests.support import ROOT
from utils import UserError

CLASSES = ["apple", "pear", "plum"]


def table(rows, classes=CLASSES, label="label"):
    """A table as Hugging Face's library writes it, of (label, path, content)."""
    features = {
        "image": {"_type": "Image"},
        label: {"names": classes, "_type": "ClassLabel"},
    }
    metadata = {"huggingface": json.dumps({"info": {"features": features}})} if classes else None
    image = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    kind = pyarrow.string() if isinstance(rows[0][0], str) else pyarrow.int64()
    schema = pyarrow.schema([("image", image), (label, kind)], metadata=metadata)
    columns = {
        "image": [{"bytes": content, "path": path} for _, path, content in rows],
        label: [value for value, _, _ in rows],
    }
    return pyarrow.Table.from_pydict(columns, schema)


def write(root, target, count=2, classes=CLASSES, **options):  # noqa: F811
    """Parquet files of the splits of class folders, in some order."""
    (target / "data").mkdir(parents=True)
    for split, name in (("train", "train"), ("val", "validation")):
        for number in range(count):
            rows = [
                (classes.index(folder) if classes else folder, below, file.read_bytes())
                for folder, below, file in images(root, split)[number::count]
                if "/" not in below
            ]
            file = target / f"data/{name}-{number:05d}-of-{count:05d}.parquet"
            parquet.write_table(table(rows, classes, **options), file, row_group_size=4)
    return target


def plain(root, split):  # noqa: F811
    dataset = class_folders.read(root, split)
    return dataset.subset([i for i, name in enumerate(dataset.names) if name.count("/") == 1])


@pytest.mark.parametrize("classes", [CLASSES, ["plum", "apple", "pear"], None])
def test_it_gives_the_batches_of_class_folders(root, tmp_path, cache, classes, capsys):  # noqa: F811
    data = write(root, tmp_path / "hf", classes=classes)
    for _ in range(2):
        found = [open_dataset(data, split) for split in ("train", "val")]
        expected = [plain(root, split) for split in ("train", "val")]
        assert_same(batches(*found), batches(*expected))
        assert found[0].classes == CLASSES and found[0].names == expected[0].names
    _, err = capsys.readouterr()
    assert err.count("unpacking 2 files such as train-00000-of-00002.parquet once, about") == 1
    assert "GB are free there" in err
    made = sorted(file.name.split("-", 1)[1] for file in cache.iterdir() if file.suffix == ".tar")
    assert made == ["train-00000-of-00002.tar", "validation-00000-of-00002.tar"]


def test_it_is_unpacked_anew_when_it_has_changed(root, tmp_path, cache):  # noqa: F811
    data = write(root, tmp_path / "hf", count=1)
    assert len(open_dataset(data, "val")) == 9
    [file] = data.glob("data/val*")
    parquet.write_table(parquet.read_table(file).slice(0, 5), file)
    assert len(open_dataset(data, "val")) == 5


def test_numbers_without_names_and_files_without_them(root, tmp_path):  # noqa: F811
    contents = [file.read_bytes() for _, _, file in images(root, "val")]
    rows = [(label, None, contents[label % 9]) for label in (10, 2, 0, 9, 2)]
    parquet.write_table(table(rows, None), tmp_path / "test.parquet")
    val = open_dataset(tmp_path / "test.parquet", "val")
    assert val.labels.tolist() == [0, 1, 1, 2, 3] and val.classes == ["00", "02", "09", "10"]
    assert val.names[:3] == ["00/00000002.jpg", "02/00000001.jpg", "02/00000004.jpg"]
    rows = [(0, "x/a.jpg", contents[0]), (0, "y/a.jpg", contents[1])]
    parquet.write_table(table(rows), tmp_path / "test.parquet")
    assert open_dataset(tmp_path / "test.parquet", "val").names == [
        "apple/a_00000000.jpg", "apple/a_00000001.jpg",
    ]  # fmt: skip


def test_classes_that_a_path_cannot_tell_apart_are_refused(root, tmp_path):  # noqa: F811
    rows = [("A/B", "1.jpg", b"-"), ("A-B", "2.jpg", b"-"), ("C", "3.jpg", b"-")]
    parquet.write_table(table(rows, None), tmp_path / "test.parquet")
    with pytest.raises(UserError, match="the classes A/B, A-B of .* have the same name in a path"):
        open_dataset(tmp_path / "test.parquet", "val")


@pytest.mark.parametrize("kind", [pyarrow.large_string(), pyarrow.dictionary("int8", "string")])
def test_labels_may_be_any_kind_of_text(root, tmp_path, kind):  # noqa: F811
    """polars writes large strings, and pandas dictionaries of a column of categories."""
    rows = [("pear", "1.jpg", b"-"), ("apple", "2.jpg", b"-")]
    whole = table(rows, None)
    texts = pyarrow.array(whole["label"].to_pylist(), kind)
    cast = whole.set_column(1, "label", texts)
    parquet.write_table(cast, tmp_path / "test.parquet")
    val = open_dataset(tmp_path / "test.parquet", "val")
    assert val.classes == ["apple", "pear"] and sorted(val.labels) == [0, 1]


def test_imagenets_english_names_become_wnids(root, tmp_path):  # noqa: F811
    words = [f"{name}, and so on" for name in class_names.imagenet_classes().values()]
    rows = [(label, f"{label}.jpg", b"-") for label in (217, 0, 701)]
    parquet.write_table(table(rows, words), tmp_path / "test.parquet")
    val = open_dataset(tmp_path / "test.parquet", "val")
    assert val.classes == ["n01440764", "n02102040", "n03888257"]


# ---------------------------------------------------------------- what goes wrong


HOSTILE = """
import pickle, sys
import pyarrow
from pyarrow import parquet
class Bad:
    def __reduce__(self):
        return __import__("os").mkdir, ("executed",)
class Type(pyarrow.PyExtensionType):
    def __init__(self):
        super().__init__(pyarrow.int64())
    def __reduce__(self):
        return Bad().__reduce__()
image = pyarrow.StructArray.from_arrays([pyarrow.array([b"x"]), pyarrow.array(["1.jpg"])],
                                        ["bytes", "path"])
odd = pyarrow.ExtensionArray.from_storage(Type(), pyarrow.array([1]))
parquet.write_table(
    pyarrow.table({"image": image, "label": pyarrow.array([0]), "odd": odd}), "val.parquet"
)
"""
OPEN = """
import sys
sys.path.insert(0, sys.argv[1])
if sys.argv[2] == "ours":
    from data.readers import open_dataset
    print(open_dataset("val.parquet", "val").names)
else:
    from pyarrow import parquet
    parquet.ParquetFile("val.parquet")
"""


def test_nothing_in_a_hostile_file_is_executed(tmp_path, monkeypatch):
    def run(*arguments):
        return subprocess.run([sys.executable, "-c", *arguments], cwd=tmp_path, text=True,
                              capture_output=True)  # fmt: skip

    written = run(HOSTILE)
    assert written.returncode == 0, written.stderr
    run(OPEN, str(ROOT), "pyarrow")
    assert (tmp_path / "executed").is_dir()  # the file does run code where nothing keeps it from it
    (tmp_path / "executed").rmdir()
    monkeypatch.setenv("REPARAM_CACHE", "cache")
    opened = run(OPEN, str(ROOT), "ours")
    assert opened.stdout.strip() == "['0/1.jpg']", opened.stderr
    assert len(opened.stderr.splitlines()) == 1 and "GB are free" in opened.stderr
    assert not (tmp_path / "executed").exists()


def refused(sentence, path):
    with pytest.raises(UserError, match=sentence) as error:
        open_dataset(path, "val")
    assert len(str(error.value).splitlines()) == 1


def test_damaged_files_and_labels_are_named(root, tmp_path):  # noqa: F811
    file = tmp_path / "val.parquet"
    content = [(label, f"{label}.jpg", bytes(99)) for label in range(3)]
    parquet.write_table(table(content, CLASSES[:2]), file)
    refused(r"row 3 of \S+val.parquet has the label 2, but labels are 0 to 1", file)
    parquet.write_table(table([(-1, "a.jpg", b"-")]), file)
    refused(r"row 1 of \S+val.parquet has the label -1", file)
    parquet.write_table(table([(1, "a.jpg", None)]), file)
    refused(r"row 1 of \S+val.parquet has no image in it, but a path", file)
    parquet.write_table(pyarrow.table({"text": ["a"], "label": [1]}), file)
    refused(r"val.parquet has no column of images .* its columns are text, label", file)
    parquet.write_table(table(content), file)
    os.truncate(file, file.stat().st_size - 9)
    refused(r"the parquet file \S+val.parquet is truncated or damaged", file)
    data = write(root, tmp_path / "hf", count=3)
    os.remove(data / "data/validation-00002-of-00003.parquet")
    refused("shard validation-00002-of-00003.parquet is missing", data)


UNPACK = """
import sys, time
sys.path.insert(0, sys.argv[1])
from data import tar_writer
from data.readers import open_dataset
tar_writer._BETWEEN_SAVES = 1
add = tar_writer._add
tar_writer._add = lambda *arguments: (add(*arguments), print("added", flush=True), time.sleep(0.05))
open_dataset(sys.argv[2], "train")
"""


def test_unpacking_goes_on_where_it_was_killed(root, tmp_path, cache, monkeypatch, capsys):  # noqa: F811
    data = write(root, tmp_path / "hf")
    with subprocess.Popen(
        [sys.executable, "-c", UNPACK, str(ROOT), str(data)], stdout=subprocess.PIPE
    ) as process:
        for _ in range(8):
            process.stdout.readline()
        process.kill()
    [partial] = cache.glob(".*.partial")
    with open(partial, "ab") as file:
        file.write(b"half of a file")
    rows = []
    whole = tar_writer._append

    def append(tar, log, files, done, bar):
        rows.append(len(done))
        return whole(tar, log, files, done, bar)

    monkeypatch.setattr(tar_writer, "_append", append)
    assert_same(batches(*[open_dataset(data, "train")] * 2), batches(*[plain(root, "train")] * 2))
    assert 6 <= rows[0] <= 8
    assert not list(cache.glob(".*.partial*"))
    [made] = cache.glob("*.tar")
    assert tar_writer.check(made) == 18
