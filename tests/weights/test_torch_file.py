"""PyTorch's checkpoints are read without PyTorch, with its values; whatever is wrong is a sentence.

The files in golden/pth were written by PyTorch, all others by torch_writer, because PyTorch would
not write most of them.
"""

import argparse
import copyreg
import io
import pickle
import struct
import sys
import tarfile
import tracemalloc
import zipfile
from collections import Counter, OrderedDict, defaultdict
from pathlib import Path

import numpy as np
import pytest

from tests.reading import load_pickle, load_torch
from tests.weights.torch_writer import (
    Call,
    Global,
    Pickler,
    Storage,
    tensor,
    whole,
    write_legacy,
    write_zip,
)
from utils import UserError
from weights import files

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "pth"
REFUSED = "refused and nothing .* executed"


both = pytest.mark.parametrize("write", [write_zip, write_legacy])


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.pth"


# ---------------------------------------------------------------- PyTorch's own files


@pytest.mark.parametrize("name", ["zip", "legacy", "plain"])
def test_files_of_pytorch_are_read_with_their_values(name):
    contents = load_torch(GOLDEN / f"{name}.pth")
    found = contents.get("state_dict", contents)
    expected = np.load(GOLDEN / "expected.npz")
    assert set(found) <= set(expected) and len(found) >= 10
    for key, values in found.items():
        assert values.dtype == expected[key].dtype, key
        assert values.flags.aligned and not values.flags.writeable
        np.testing.assert_array_equal(values, expected[key], strict=True)
    assert "torch" not in sys.modules


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_what_stands_beside_the_weights_is_plain(name):
    contents = load_torch(GOLDEN / f"{name}.pth")
    assert contents["epoch"] == 119 and contents["best"] == 72.41
    assert contents["args"] == {"arch": "RepVGG-A0", "lr": 0.1} and type(contents["args"]) is dict
    assert contents["optimizer"]["state"][0]["momentum_buffer"].shape == (3,)


def test_a_truncated_file_gives_one_sentence():
    with pytest.raises(UserError, match="truncated or not a checkpoint .* saved completely$"):
        load_torch(GOLDEN / "truncated.pth")


def test_a_malicious_file_is_refused_by_name_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"asks for \w+\.\w+, .* {REFUSED}"):
        load_torch(GOLDEN / "malicious.pth")
    assert not Path("OWNED").exists()


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_a_file_cut_anywhere_is_an_error(path, name):
    data = (GOLDEN / f"{name}.pth").read_bytes()
    for length in range(0, len(data), 13):
        path.write_bytes(data[:length])
        with pytest.raises(UserError):
            load_torch(path)


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_a_file_with_damaged_bytes_is_read_or_an_error(path, name, rng):
    data = (GOLDEN / f"{name}.pth").read_bytes()
    for _ in range(300):
        damaged = bytearray(data)
        for position in rng.integers(0, len(data), 3):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            contents = load_torch(path)
        except UserError:
            continue
        repr(contents)  # uses every value


# ---------------------------------------------------------------- tensors

KINDS = {
    "Double": np.float64,
    "Float": np.float32,
    "Half": np.float16,
    "Long": np.int64,
    "Int": np.int32,
    "Short": np.int16,
    "Char": np.int8,
    "Byte": np.uint8,
    "Bool": np.bool_,
    "ComplexFloat": np.complex64,
    "ComplexDouble": np.complex128,
}


@both
@pytest.mark.parametrize("kind", KINDS)
def test_every_type(path, write, kind):
    values = (np.arange(6).reshape(2, 3) % 2).astype(KINDS[kind])
    # The text before moves the storage to another alignment.
    contents = {"x" * 3: whole(f"torch.{kind}Storage", values), "y": 1}
    found = load_torch(write(path, contents))["xxx"]
    assert found.dtype == KINDS[kind] and found.flags.aligned
    np.testing.assert_array_equal(found, values, strict=True)


@both
def test_bfloat16_becomes_float32(path, write):
    values = np.array([0, 1, -2.5, 3e38, np.inf, 1e-40], np.float32)
    bits = values.view(np.uint32) >> 16
    storage = Storage("torch.BFloat16Storage", bits.astype(np.uint16))
    contents = [tensor(storage, 0, (6,), (1,)), tensor(storage, 1, (2, 2), (1, 2))]
    found, view = load_torch(write(path, contents))
    np.testing.assert_array_equal(found, (bits << 16).view(np.float32), strict=True)
    np.testing.assert_array_equal(view, found[1:5].reshape(2, 2).T)


@both
def test_booleans_are_zero_or_one(path, write):
    storage = Storage("torch.BoolStorage", np.array([0, 1, 2, 255], np.uint8))
    found = load_torch(write(path, tensor(storage, 0, (4,), (1,))))
    assert found.view(np.uint8).tolist() == [0, 1, 1, 1]


@both
@pytest.mark.parametrize("rebuild", ["_rebuild_tensor", "_rebuild_tensor_v2"])
def test_views_have_offsets_and_strides_and_share_their_storage(path, write, rebuild):
    base = np.arange(24, dtype=np.float32).reshape(4, 6)
    storage = Storage("torch.FloatStorage", base)
    views = {
        "whole": ((0, (4, 6), (6, 1)), base),
        "transposed": ((0, (6, 4), (1, 6)), base.T),
        "part": ((8, (2, 3), (6, 1)), base[1:3, 2:5]),
        "every other": ((1, (2, 2), (12, 3)), base[::2, 1::3]),
        "expanded": ((5, (3, 2), (0, 0)), np.full((3, 2), base[0, 5])),
        "last": ((23, (), ()), base[3, 5]),
        "none": ((24, (0, 6), (6, 1)), base[4:]),
    }
    contents = {name: tensor(storage, *view, rebuild) for name, (view, _) in views.items()}
    found = load_torch(write(path, contents))
    for name, (_, values) in views.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].shape == values.shape and not found[name].flags.writeable
    assert np.shares_memory(found["whole"], found["part"])


@both
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_parameters_and_plain_values(path, write, protocol):
    weight = whole("torch.FloatStorage", np.ones((2, 2), np.float32))
    state_dict = Call("collections.OrderedDict", state={"_metadata": {"": {"version": 1}}})
    contents = {
        "parameter": Call("torch._utils._rebuild_parameter", weight, True, OrderedDict()),
        "noted": Call("torch._utils._rebuild_parameter_with_state", weight, True, {}, {"a": 1}),
        "typed": Call(
            "torch._tensor._rebuild_from_type_v2",
            Global("torch._utils._rebuild_tensor_v2"),
            Global("torch.Tensor"),
            weight.arguments,
            {"a": 1},
        ),
        "count": whole("torch.LongStorage", np.array(7)),
        "state_dict": state_dict,
        "numpy": np.float64(0.5),
        "array": np.arange(3),
        "empty": np.zeros((0, 3)),
        "text": np.array(["a", "bc"]),
    }
    plain = {
        "size": (Call("torch.Size", (1, 2)), (1, 2)),
        "dtype": (Global("torch.bfloat16"), "torch.bfloat16"),
        "device": (Call("torch.device", "cuda", 0), "cuda:0"),
        "arguments": (argparse.Namespace(lr=[1]), {"lr": [1]}),
        "path": (Call("pathlib.PosixPath", "a", "b"), "a/b"),
        "milestones": (Counter([3, 3, 5]), {3: 2, 5: 1}),
    }
    found = load_torch(write(path, {**contents, **{k: v for k, (v, _) in plain.items()}}))
    for key in ("parameter", "noted", "typed"):
        np.testing.assert_array_equal(found[key], np.ones((2, 2), np.float32), strict=True)
    assert found["count"].shape == () and found["count"] == 7
    assert found["state_dict"] == {} and found["numpy"] == 0.5
    for key in ("array", "empty", "text"):
        np.testing.assert_array_equal(found[key], contents[key], strict=True)
    for key, (_, value) in plain.items():
        assert found[key] == value and type(found[key]) is type(value)


@pytest.mark.parametrize(
    "options",
    [
        {"root": "any name"},
        {"byteorder": None},
        {"byteorder": b"big"},
        {"compression": zipfile.ZIP_DEFLATED},
        *({"alignment": 1, "root": "a" * length} for length in (1, 2, 3, 4)),
    ],
)
def test_other_zips(path, options, rng):
    values = rng.standard_normal((3, 5)).astype(np.float32)
    found = load_torch(write_zip(path, [whole("torch.FloatStorage", values)], **options))[0]
    assert found.dtype == np.float32 and found.flags.aligned
    np.testing.assert_array_equal(found, values)


def test_a_storage_may_have_a_few_bytes_to_spare(path):
    # torch.arange(10, dtype=torch.uint8)[:8].view(torch.int32)
    storage = Storage("torch.IntStorage", np.arange(10, dtype=np.uint8), numel=2)
    found = load_torch(write_zip(path, tensor(storage, 0, (2,), (1,))))
    assert found.tobytes() == bytes(range(8))


def test_pickles_of_arrays_are_read_too(path):
    path.write_bytes(pickle.dumps({"weight": np.ones(3)}))
    np.testing.assert_array_equal(load_torch(path)["weight"], np.ones(3))


# ---------------------------------------------------------------- what contradicts itself


@both
@pytest.mark.parametrize(
    "view",
    [
        (0, (11,), (1,)),
        (1, (10,), (1,)),
        (10, (), ()),
        (0, (2, 5), (6, 1)),
        (0, (2, 2), (2**62, 1)),
        (2**70, (1,), (1,)),
        (-1, (2,), (1,)),
        (9, (10,), (-1,)),
        (0, (-1,), (1,)),
        (0, (-2, -5), (5, 1)),
        (0, (2, 5), (1,)),
        (0.0, (2,), (1,)),
        (0, (True,), (1,)),
        (0, ("a",), (1,)),
    ],
)
def test_a_view_outside_its_storage_is_refused(path, write, view):
    contents = tensor(Storage("torch.FloatStorage", np.ones(10, np.float32)), *view)
    with pytest.raises(UserError, match="is damaged: a tensor (has|uses) .*; give a complete copy"):
        load_torch(write(path, contents))


@both
@pytest.mark.parametrize("size", [(2**62,), (2**62, 2**62), (1,) * 40, (0, 2**62, 2**62)])
def test_sizes_beyond_all_memory_give_one_sentence(path, write, size):
    storage = Storage("torch.FloatStorage", np.ones(10, np.float32))
    with pytest.raises(UserError, match="not a checkpoint"):
        load_torch(write(path, tensor(storage, 0, size, (0,) * len(size))))


@both
def test_a_tensor_is_not_much_larger_than_its_storage(path, write):
    storage = Storage("torch.FloatStorage", np.ones(10, np.float32))
    buffer = load_torch(write(path, tensor(storage, 0, (4, 1024), (0, 0))))
    assert buffer.shape == (4, 1024) and buffer.all()
    for size, stride in (((4097,), (0,)), ((10**9, 10), (0, 1)), ((64, 10**6, 3, 3), (0,) * 4)):
        with pytest.raises(UserError, match="has a tensor of .* that repeats a storage of 10,"):
            load_torch(write(path, tensor(storage, 0, size, stride)))


@both
@pytest.mark.parametrize("numel", [-1, 9, 11, 1000, 2**40, 2**70, 1.0, None, "ten"])
def test_a_storage_of_another_size_is_refused(path, write, numel):
    storage = Storage("torch.DoubleStorage", np.ones(10))
    storage.numel = numel
    if write is write_zip and numel == 9:
        numel = storage.numel = 8  # one element less is within what PyTorch may spare
    with pytest.raises(UserError, match="is damaged: "):
        load_torch(write(path, tensor(storage, 0, (1,), (1,))))


@pytest.mark.parametrize("count", [-1, 0, 9, 11, 2**62])
def test_a_legacy_storage_of_another_count_is_refused(path, count):
    contents = [whole("torch.FloatStorage", np.ones(10, np.float32))]
    with pytest.raises(UserError, match="storage 0 has not the 10 elements"):
        load_torch(write_legacy(path, contents, counts={0: count}))


@pytest.mark.parametrize("keys", [["0"], ["0", "2"], ["0", "1", "2"], ["0", "0"]])
def test_a_legacy_list_of_other_storages_is_refused(path, keys):
    contents = [whole("torch.FloatStorage", np.ones(n, np.float32)) for n in (2, 3)]
    with pytest.raises(UserError, match="its list of storages is not that of its tensors"):
        load_torch(write_legacy(path, contents, keys=keys))


def test_legacy_files_of_other_times_and_machines_are_refused(path):
    contents = whole("torch.FloatStorage", np.ones(10, np.float32))
    with pytest.raises(UserError, match="which is no whole storage"):
        load_torch(write_legacy(path, contents, notes=(("1", 2, 3),)))
    with pytest.raises(UserError, match="big-endian machine; save it again"):
        load_torch(write_legacy(path, contents, little_endian=False))


def test_a_member_that_reaches_beyond_the_file_is_refused(path):
    write_zip(path, whole("torch.FloatStorage", np.ones(10, np.float32)))
    data = path.read_bytes()
    size = struct.pack("<I", 40)
    entry = data.rindex(b"archive/data/0") - 46  # in the list at the end: offset 42, sizes 20, 24
    where = struct.pack("<I", len(data) - 60)
    assert data[entry + 20 : entry + 28] == 2 * size
    path.write_bytes(data[: entry + 42] + where + data[entry + 46 :])
    with pytest.raises(UserError, match="not a checkpoint"):
        load_torch(path)


@pytest.mark.parametrize("member", ["data.pkl", "data/0", "data/1"])
def test_a_missing_member_is_named(path, member):
    contents = [whole("torch.FloatStorage", np.ones(n, np.float32)) for n in (2, 3)]
    with pytest.raises(UserError, match=f"0 members data.pkl|archive/{member} is missing"):
        load_torch(write_zip(path, contents, without=[member]))


def test_one_key_of_two_types_is_refused(path):
    pickler = Pickler(file := io.BytesIO())
    storages = [Storage("torch.FloatStorage", np.ones(2)), Storage("torch.IntStorage", np.ones(2))]
    pickler.storages = type("Same", (list,), {"index": lambda self, thing: 0})()
    pickler.dump([tensor(storage, 0, (2,), (1,)) for storage in storages])
    write_zip(path, file.getvalue())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/data/0", bytes(8))
    with pytest.raises(UserError, match="storage 0 has two types or sizes"):
        load_torch(path)


def test_a_zip_bomb_is_refused_before_it_grows(path):
    storage = Storage("torch.ByteStorage", np.zeros(30_000_000, np.uint8))
    contents = tensor(storage, 0, (1,), (1,))
    write_zip(path, contents, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="far larger than the file"):
        load_torch(path)
    storage.numel = 1
    storage.values = np.zeros(10_000, np.uint8)
    with pytest.raises(UserError, match="has not the 1 bytes it should"):
        load_torch(write_zip(path, contents))
    with pytest.raises(UserError, match="unusual method"):
        load_torch(write_zip(path, contents, compression=zipfile.ZIP_LZMA, byteorder=None))


@pytest.mark.parametrize(
    "content", [b"", b"PK\x03\x04", b"PK\x03\x04" + bytes(600), b"text", b"\0"]
)
def test_no_checkpoints_give_one_sentence(path, content):
    path.write_bytes(content)
    with pytest.raises(UserError, match="empty, truncated or not a checkpoint"):
        load_torch(path)


def test_the_tar_format_is_refused_and_told(path):
    with tarfile.open(path, "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    with pytest.raises(UserError, match="tar format .* save it again"):
        files.read(path)


def test_other_zips_missing_files_and_folders_give_one_sentence(tmp_path):
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    with pytest.raises(UserError, match="0 members data.pkl"):
        load_torch(tmp_path / "a.npz")
    with pytest.raises(UserError, match="cannot read .*No such file"):
        load_torch(tmp_path / "none.pth")
    with pytest.raises(UserError, match="cannot read .*directory"):
        load_torch(tmp_path)


# ---------------------------------------------------------------- what asks for more than data


def text(value):
    return pickle.BINUNICODE + struct.pack("<I", len(value)) + value.encode()


OPEN = text("OWNED") + text("w")
HOSTILE = {
    "GLOBAL": b"cbuiltins\nopen\n(" + OPEN + b"tR.",
    "STACK_GLOBAL": text("builtins") + text("open") + b"\x93(" + OPEN + b"tR.",
    "INST": b"(" + OPEN + b"ibuiltins\nopen\n.",
    "OBJ": b"(cbuiltins\nopen\n" + OPEN + b"o.",
    "NEWOBJ": b"cio\nFileIO\n(" + OPEN + b"t\x81.",
    "NEWOBJ_EX": b"cio\nFileIO\n(" + OPEN + b"t}\x92.",
    "dotted name": text("collections") + text("OrderedDict.__init__") + b"\x93.",
    "attribute of a stand-in": b"ctorch._utils\n_rebuild_parameter.__globals__\n.",
    "torch itself": b"ctorch.hub\nload\n(" + OPEN + b"tR.",
    "a pickle in a pickle": b"ctorch.storage\n_load_from_bytes\n(" + OPEN + b"tR.",
    "another codec": b"c_codecs\nencode\n(" + text("a") + text("utf-16") + b"tR.",
    "an array type": b"cnumpy\nndarray\n(K\x05\x85tR.",
    "objects in arrays": b"cnumpy\ndtype\n(" + text("O8") + b"tR.",
    "records": b"cnumpy\ndtype\n(" + text("f4,O") + b"tR.",
    **{
        f"state of {name}": b"c" + name.replace(" ", "\n").encode() + b"\nN}(" + OPEN + b"u\x86b."
        for name in (
            "collections OrderedDict",
            "argparse Namespace",
            "torch Size",
            "torch._utils _rebuild_tensor_v2",
            "torch._utils _rebuild_parameter",
            "torch FloatStorage",
            "torch float32",
            "numpy dtype",
            "numpy.core.numeric _frombuffer",
        )
    },
    "state of a filled array": b"cnumpy.core.numeric\n_frombuffer\n(C\x01acnumpy\ndtype\n("
    + text("u1")
    + b"tq\x00RK\x01\x85"
    + text("C")
    + b"tR(K\x01K\x01\x85cnumpy\ndtype\nh\x00R\x89C\x01btb.",
    "extension": b"\x82\x01.",
}


# The others only mention what they may, and ask for what cannot be done with a mention.
NAMED = HOSTILE.keys() - {"extension", "an array type"}


@pytest.mark.parametrize("name", HOSTILE)
def test_no_opcode_reaches_a_forbidden_global(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    write_zip("bad.pth", b"\x80\x04" + HOSTILE[name])
    Path("bad.pkl").write_bytes(b"\x80\x04" + HOSTILE[name])
    for read, path in ((load_torch, "bad.pth"), (load_pickle, "bad.pkl")):
        with pytest.raises(UserError, match=REFUSED if name in NAMED else "not a checkpoint"):
            read(path)
    assert not Path("OWNED").exists()


@pytest.mark.parametrize(
    "name, asked",
    [("GLOBAL", "builtins.open"), ("INST", "builtins.open"), ("torch itself", "torch.hub.load")],
)
def test_the_forbidden_global_is_named(path, name, asked):
    with pytest.raises(UserError, match=f"asks for {asked}, .* {REFUSED}"):
        load_torch(write_zip(path, b"\x80\x04" + HOSTILE[name]))


def test_registered_extensions_are_no_way_round(path, monkeypatch):
    copyreg.add_extension("builtins", "open", 1)
    try:
        with pytest.raises(UserError, match="asks for builtins.open"):
            load_torch(write_zip(path, b"\x80\x02" + HOSTILE["extension"]))
    finally:
        copyreg.remove_extension("builtins", "open", 1)


@both
@pytest.mark.parametrize(
    "value, asked",
    [
        (tensor(Storage("torch.QInt8Storage", [1]), 0, (1,), (1,)), "torch.QInt8Storage"),
        (Call("torch._utils._rebuild_sparse_tensor", 1), "torch._utils._rebuild_sparse_tensor"),
        (Call("torch.nn.modules.linear.Linear"), "torch.nn.modules.linear.Linear"),
        (Call("__main__.Net"), "__main__.Net"),
        (defaultdict(dict), "collections.defaultdict"),
        (
            Call("torch._utils._rebuild_tensor_v2", None, 0, (), (), False, None, {"neg": True}),
            "a tensor that is conjugated",
        ),
    ],
)
def test_other_objects_are_refused_by_name(path, write, value, asked):
    with pytest.raises(UserError, match=f"asks for {asked}.* {REFUSED}"):
        load_torch(write(path, {"a": value}))


# NumPy believes the state of a type: these would take bytes for pointers, or read beyond them.
STATES = [
    ("V8", (3, "|", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0)),
    ("f8", (3, "<", None, ("f",), {"f": (np.dtype("O"), 0)}, 8, 1, 0)),
    ("f8", (3, "<", None, None, None, -1, -1, 0x3F)),
    ("S5", (3, "|", None, None, None, 5000, 1, 0)),
    ("f4", (3, "<", (np.dtype("f8"), (9,)), None, None, 72, 1, 0)),
]


@pytest.mark.parametrize("name, state", STATES)
def test_a_numpy_type_with_a_state_of_its_own_is_refused(tmp_path, name, state):
    file = io.BytesIO()
    Pickler(file).dump(Call("numpy.dtype", name, False, True, state=state))
    (tmp_path / "bad.pkl").write_bytes(file.getvalue())
    for read, path in (
        (load_pickle, tmp_path / "bad.pkl"),
        (load_torch, write_zip(tmp_path / "bad.pth", file.getvalue())),
    ):
        with pytest.raises(UserError, match=f"asks for numpy.dtype .* {REFUSED}"):
            read(path)


@pytest.mark.parametrize("shape", [(-1, -3), (4,), (2**62, 2**62), (3.0,)])
def test_an_array_with_another_shape_than_its_data_is_refused(tmp_path, shape):
    reconstruct = "numpy.core.multiarray._reconstruct"
    state = (1, shape, np.dtype("u1"), False, b"abc")
    file = io.BytesIO()
    Pickler(file, 4).dump(Call(reconstruct, Global("numpy.ndarray"), (0,), b"b", state=state))
    (tmp_path / "bad.pkl").write_bytes(file.getvalue())
    with pytest.raises(UserError, match="not a checkpoint"):
        load_pickle(tmp_path / "bad.pkl")


# ---------------------------------------------------------------- memory


@pytest.mark.parametrize("write, share", [(write_zip, 0.1), (write_legacy, 1.1)])
def test_reading_takes_the_memory_of_the_weights_or_maps_them(path, write, share):
    values = np.ones(2**20, np.float32)
    write(path, {"w": whole("torch.FloatStorage", values)})
    tracemalloc.start()
    try:
        weight = load_torch(path)["w"]
        _now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(weight, values)
    assert peak < share * values.nbytes
