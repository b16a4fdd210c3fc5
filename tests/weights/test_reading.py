"""Files as people have them are read for what they are, or refused with what to do instead."""

import argparse
import bz2
import collections
import datetime
import enum
import errno
import functools
import gzip
import io
import itertools
import json
import lzma
import pathlib
import pickle
import re
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from contextlib import suppress

import models

import megengine as mge
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save, save_file

import weights
from tests.support import ONE_OF_EACH, slow_but
from tests.weights.torch_writer import Call, Global, Storage, whole, write_legacy, write_zip
from utils import UserError
from weights import (
    archives,
    catalog,
    checkpoint,
    files,
    formats,
    layouts,
    recognition,
    recorded_preprocessing,
)
from weights.state import form_of, shapes_of

ARCH = "RepGhost050"


@pytest.fixture(scope="module")
def tensors():
    """A small network in RepGhost's own layout."""
    return in_layout(ARCH, "repghost")


def in_layout(arch, layout, classes=5, form="train", value=0.5):
    shapes = shapes_of(arch, classes, form)
    state = {key: np.full(shape, value, np.float32) for key, shape in shapes.items()}
    return layouts.export(state, arch, layout)


def pickled(contents, path, protocol=4):
    path.write_bytes(pickle.dumps(contents, protocol))
    return path


def read(path, **options):
    return checkpoint.read(path, **options)


# ---------------------------------------------------------------- nested, and with prefixes


def prefixed(prefix, tensors):
    return {prefix + key: value for key, value in tensors.items()}


KEYS = (
    *("state_dict", "model", "model_state_dict", "net", "network", "params", "params_ema"),
    *("ema", "teacher", "weights", "generator"),
)
NESTED = {
    **{name: lambda t, name=name: {name: t, "epoch": 3} for name in KEYS},
    "a metric": lambda t: {"state_dict": t, "best_acc1": np.float32(71.5)},
    "a metric among the weights": lambda t: {**t, "best_acc1": np.float32(71.5)},
    "a random state": lambda t: {"model": t, "rng_state": np.zeros(5056, np.uint8)},
    "an optimizer": lambda t: {
        "optimizer": {"state": {i: {"exp_avg": np.zeros(3)} for i in range(40)}},
        "model": t,
    },
    "three deep": lambda t: {"a": {"b": {"c": t}, "d": np.zeros(2)}},
    "a list": lambda t: [1, {"x": np.zeros(2)}, t],
    "a tuple": lambda t: ("v1", (t, {"lr": 0.1})),
    "compiled": lambda t: prefixed("_orig_mod.", t),
    "several GPUs, compiled": lambda t: {"model": prefixed("_orig_mod.module.", t)},
    "compiled, several GPUs": lambda t: {"model": prefixed("module._orig_mod.", t)},
    "Lightning": lambda t: {
        "state_dict": {**prefixed("model.", t), "criterion.weight": np.ones(5, np.float32)},
        "pytorch-lightning_version": "2.1",
    },
    "averaged": lambda t: {"n_averaged": np.array(5), **prefixed("module.", t)},
    "an EMA wrapper": lambda t: {
        **prefixed("ema_model.", t),
        "initted": np.array(True),
        "step": np.array(10),
    },
    "a backbone and a classifier": lambda t: {
        key if key.startswith("classifier") else f"backbone.{key}": value
        for key, value in t.items()
    },
    "both, in a module": lambda t: {
        "state_dict": {
            f"model.{key}" if key.startswith("classifier") else f"model.backbone.{key}": value
            for key, value in t.items()
        }
    },
    "keys of bytes": lambda t: {b"model": {key.encode(): value for key, value in t.items()}},
    "counters": lambda t: {**t, "total_ops": np.zeros(1), "conv_stem.total_params": np.zeros(1)},
}


@pytest.mark.parametrize("name", NESTED)
def test_weights_are_found_wherever_they_are_nested(tensors, name, capfd):
    foreign = recognition.recognize(NESTED[name](tensors), "file")
    assert (foreign.arch, foreign.num_classes, foreign.others) == (ARCH, 5, [])
    assert foreign.state_dict.keys() == shapes_of(ARCH, 5, "train").keys()
    assert not any(key.endswith("classifier.weight") for key in foreign.dropped)


def test_what_is_left_out_is_reported(tensors):
    foreign = recognition.recognize(NESTED["Lightning"](tensors), "file")
    assert "criterion.weight" in foreign.dropped and foreign.entry == "state_dict.model"
    foreign = recognition.recognize(NESTED["counters"](tensors), "file")
    assert {"total_ops", "conv_stem.total_params"} <= set(foreign.dropped)


def test_an_unknown_tensor_in_a_layer_is_still_an_error(tensors):
    with pytest.raises(recognition.ConversionError, match="no rule knows: extra.scale"):
        recognition.recognize({"model": {**tensors, "extra.scale": np.ones(3)}}, "file")


# ---------------------------------------------------------------- several sets of weights


def two(arch, layout, *names):
    return {name: in_layout(arch, layout, value=i + 1) for i, name in enumerate(names)}


@pytest.mark.parametrize(
    "arch, layout, names, taken",
    [
        ("RepGhost050", "repghost", ("state_dict", "state_dict_ema"), "state_dict_ema"),
        ("RepVGGA0", "timm", ("state_dict", "state_dict_ema"), "state_dict_ema"),
        ("RepViTM0_6", "repvit", ("model_ema", "model"), "model"),
        ("RepViTM0_6", "timm", ("state_dict", "state_dict_ema"), "state_dict_ema"),
        ("RepVGGA0", "repvgg", ("state_dict", "ema_state_dict"), "ema_state_dict"),
        ("RepVGGA0", "mmpretrain", ("state_dict", "ema_state_dict"), "state_dict"),
        ("RepVGGA0", "mmpretrain", ("ema_state_dict", "state_dict"), "state_dict"),
        ("RepVGGA0", "repvgg", ("model", "ema"), "ema"),
        ("RepVGGA0", "repvgg", ("params", "params_ema"), "params_ema"),
        ("RepVGGA0", "repvgg", ("student", "teacher"), "teacher"),
    ],
)
def test_of_two_sets_the_one_that_is_evaluated_is_taken_and_the_other_is_named(
    arch, layout, names, taken, tmp_path, capfd
):
    path = pickled(two(arch, layout, *names), tmp_path / "two.pkl")
    other = next(name for name in names if name != taken)
    found = read(path)
    assert (found.entry, found.other_entries) == (taken, [other])
    assert f"{taken} was taken, and there is also {other}" in capfd.readouterr().err
    chosen = read(path, entry=other)
    assert chosen.entry == other and not capfd.readouterr().err
    kernels = [next(iter(c.state_dict.values())).flat[0] for c in (found, chosen)]
    assert kernels == [names.index(taken) + 1, names.index(other) + 1]
    with pytest.raises(UserError, match="has no entry 'nothing'; those with tensors are"):
        read(path, entry="nothing")


@pytest.mark.parametrize("color", ["RGB", "BGR", None])
def test_a_mean_in_the_files_words_keeps_its_order(color, tmp_path):
    """Beside a network in a layout of BGR, whose own mean the colour order would reverse."""
    contents = {
        "state_dict": in_layout("RepVGGA0", "basecls"),
        "args": {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6]},
    }
    path = pickled(contents, tmp_path / "a.pkl")
    said = {} if color is None else {"color": (color, "--color")}
    found = checkpoint.read(path, stated=said).preprocessing
    assert (found.color, found.mean) == (color or "BGR", (25.5, 51.0, 76.5))
    assert found.std == (102.0, 127.5, 153.0)


def test_the_words_of_replknets_training():
    words = {"input_size": 224, "test_size": 320, "imagenet_default_mean_and_std": False}
    said = recorded_preprocessing.of_timm(words, "args")
    assert said["size"] == (320, "args") and said["mean"] == ((127.5,) * 3, "args")
    said = recorded_preprocessing.of_timm({"input_size": 224, "test_size": None}, "args")
    assert said["size"] == (224, "args") and "mean" not in said


def test_mmengine_swaps_the_two_sets_whatever_the_network_is_called():
    tree = two("RepVGGA0", "repvgg", "state_dict", "ema_state_dict")
    assert recognition.recognize(tree, "file").entry == "ema_state_dict"
    assert recognition.recognize({**tree, "message_hub": {}}, "file").entry == "state_dict"


def test_student_and_teacher_in_one_state_dict(tensors):
    both = {**prefixed("student.", tensors), **prefixed("teacher.", tensors)}
    foreign = recognition.recognize({"state_dict": both}, "file")
    assert (foreign.entry, foreign.others) == ("state_dict.teacher", ["state_dict.student"])
    assert recognition.recognize({"state_dict": both}, "f", entry="student").others == []


def test_a_fused_network_beside_its_old_train_form(tensors):
    """As mmengine's scripts leave it: the raw weights of before the fusion are larger."""
    fused = in_layout("RepVGGA0", "repvgg", form="deploy")
    raw = prefixed("module.", in_layout("RepVGGA0", "repvgg"))
    tree = {"ema_state_dict": raw, "state_dict": fused, "message_hub": {}}
    foreign = recognition.recognize(tree, "file")
    assert (foreign.entry, form_of(foreign.state_dict)) == ("state_dict", "deploy")


def test_the_architecture_that_is_asked_for_decides_first():
    student, teacher = in_layout("RepVGGA0", "timm"), in_layout("RepVGGB0", "timm")
    contents = {"student": student, "teacher": teacher}
    assert recognition.recognize(contents, "file").arch == "RepVGGB0"
    assert recognition.recognize(contents, "file", "RepVGGA0").entry == "student"


# ---------------------------------------------------------------- what stands beside the weights


class Colour(enum.Enum):
    RED = 1


class Config(dict):  # as yacs' CfgNode and Lightning's AttributeDict: a dict with attributes
    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.__dict__["frozen"] = True


class History(list):
    pass


class Slots:
    __slots__ = ("a",)

    def __init__(self):
        self.a = 1


def a_function():
    pass


OBJECTS = {
    "a config": Config({"lr": 0.1, "nested": Config({"a": [1, 2]})}),
    "a list of its own class": History([1, 2]),
    "slots": Slots(),
    "a function": a_function,
    "a class": Slots,
    "a method": collections.Counter("aab").most_common,
    "a bound method": History([3]).count,
    "partial": functools.partial(a_function),
    "set": {1, 2},
    "frozenset": frozenset("ab"),
    "defaultdict": collections.defaultdict(list, a=[1]),
    "Counter": collections.Counter("aab"),
    "deque": collections.deque([1, 2], maxlen=3),
    "Namespace": argparse.Namespace(lr=0.1),
    "SimpleNamespace": types.SimpleNamespace(a=1),
    "datetime": datetime.datetime(2024, 1, 2),
    "path": pathlib.PurePosixPath("a/b"),
    "enum": Colour.RED,
    "range": range(3),
    "slice": slice(1, 2),
    "complex": 1j,
    "bytearray": bytearray(b"ab"),
    "generator": np.random.default_rng(0).bit_generator.state,
    "objects": np.array([None, {}], object),
    "records": np.zeros(2, [("a", "f4")]),
    "dates": np.array(["2024-01-02"], "M8[D]"),
    "NumPy's numbers": [np.float64(1), np.int64(2), np.bool_(True), np.str_("a")],
    "a key": {Colour.RED: 1, (1, "a"): 2, frozenset("a"): 3},
}


@pytest.mark.parametrize(
    "name, protocol",
    # Python does not pickle slots by protocol 0
    [pair for pair in itertools.product(OBJECTS, (0, 2, 4, 5)) if pair != ("slots", 0)],
)
def test_foreign_objects_beside_the_weights_are_inert(name, protocol, tmp_path):
    expected = np.arange(3, dtype=np.float32)
    contents = {
        "other": OBJECTS[name],
        "state_dict": {"a.weight": expected},
        "again": OBJECTS[name],
    }
    tree = files.read(pickled(contents, tmp_path / "file.pkl", protocol)).tree
    np.testing.assert_array_equal(tree["state_dict"]["a.weight"], expected)


def test_nothing_of_a_foreign_class_is_imported_or_run(tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text("open('OWNED', 'w')\ndef run(*a): open('OWNED', 'w')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    weight = whole("torch.FloatStorage", np.ones(3, np.float32))
    write_zip("f.pth", {"a.b": weight, "x": Call("evil.run", "a", state={"b": 1})})
    assert list(files.read("f.pth").tree) == ["a.b", "x"]
    assert "evil" not in sys.modules and not pathlib.Path("OWNED").exists()
    write_zip("o.pth", {"a.b": weight, "x": Call("code.utils.Config", "a")})  # one's own `code`
    assert list(files.read("o.pth").tree) == ["a.b", "x"]
    for name in ("posix.system", "code.interact", "shutil.rmtree", "os.path.exists"):
        write_zip("g.pth", {"a.b": weight, "x": Call(name, "touch OWNED")})
        with pytest.raises(UserError, match=f"asks for {name}, .* nothing in it was executed"):
            files.read("g.pth")
    assert not pathlib.Path("OWNED").exists()


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_tensors_that_are_keys_and_getattr_are_inert(write, tmp_path):
    """As in old optimizers' states, and in mmengine's message hub."""
    weight = whole("torch.FloatStorage", np.ones(3, np.float32))
    history = Call("mmengine.HistoryBuffer", state={"a": Call("__builtin__.getattr", 1, "b")})
    state = Call("collections.defaultdict", Global("__builtin__.dict"))
    contents = {"a.b": weight, "hub": {"loss": history}, "state": state}
    assert write(tmp_path / "f.pth", contents)
    np.testing.assert_array_equal(files.read(tmp_path / "f.pth").tree["a.b"], np.ones(3, "f4"))
    pairs = b"\x80\x02}(" + pickle.dumps(np.ones(2), 2)[2:-1] + b"K\x01u."
    (tmp_path / "keys.pkl").write_bytes(pairs)
    assert [*files.read(tmp_path / "keys.pkl").tree.values()] == [1]


# ---------------------------------------------------------------- refused with what to do


def module(name, **attributes):
    """A pickled layer of PyTorch, as torch.save(model) writes it."""
    return Call(name, state={"training": True, "_parameters": attributes, "_modules": {}})


def test_whole_networks_are_refused_with_what_to_do(tensors, tmp_path):
    weight = whole("torch.FloatStorage", np.ones((3, 3), np.float32))
    write_zip(tmp_path / "f.pth", module("repvgg.RepVGG", weight=weight))
    with pytest.raises(UserError, match=r"pickled as repvgg.RepVGG, .* torch.save\(net.state_dict"):
        read(tmp_path / "f.pth")
    write_zip(tmp_path / "g.pth", {"ema": module("yolo.Model", weight=weight), "epoch": 1})
    with pytest.raises(UserError, match="pickled as yolo.Model"):
        read(tmp_path / "g.pth")
    both = {"model": {key: whole_of(v) for key, v in tensors.items()}, "loss": module("a.Loss")}
    assert read(write_zip(tmp_path / "h.pth", both)).arch == ARCH


def whole_of(values):
    kind = {"f4": "Float", "i8": "Long"}[values.dtype.str[1:]]
    return whole(f"torch.{kind}Storage", values)


def test_torchscript_is_refused_with_what_to_do(tmp_path):
    path = write_zip(tmp_path / "f.pt", {"a": whole("torch.FloatStorage", np.ones(3))})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("archive/constants.pkl", b"")
        archive.writestr("archive/code/__torch__.py", "class Net: pass")
    with pytest.raises(UserError, match=r"is a TorchScript program, .* torch.jit.load"):
        read(path)


def test_tensors_pickled_one_by_one_are_refused_with_what_to_do(tmp_path):
    file = io.BytesIO()
    from tests.weights.torch_writer import Pickler

    storage = Call("torch.storage._load_from_bytes", b"\x80\x02")
    Pickler(file).dump({"a": Call("torch._utils._rebuild_tensor_v2", storage, 0, (), ())})
    (tmp_path / "f.pkl").write_bytes(file.getvalue())
    with pytest.raises(UserError, match=r"pickled one by one, .* torch.save\(state_dict"):
        read(tmp_path / "f.pkl")


def test_the_inside_of_an_unpacked_file_is_told(tmp_path):
    path = write_zip(tmp_path / "f.pth", {"a": whole("torch.FloatStorage", np.ones(3))})
    with zipfile.ZipFile(path) as archive:
        (tmp_path / "data.pkl").write_bytes(archive.read("archive/data.pkl"))
    with pytest.raises(UserError, match="part of an unpacked PyTorch file"):
        read(tmp_path / "data.pkl")


# ---------------------------------------------------------------- formats by content


def as_npz(tensors):
    file = io.BytesIO()
    np.savez(file, **tensors)
    return file.getvalue()


def zipped(name, content, **others):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for key, value in {name: content, **others}.items():
            archive.writestr(key, value)
    return file.getvalue()


def tarred(name, content):
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return file.getvalue()


def with_readme(content):
    return zipped("a/w.safetensors", content, **{"a/README.md": "x", "__MACOSX/a/._w.pth": "x"})


FORMATS = {
    "safetensors": save,
    "npz": as_npz,
    "pickle": lambda t: pickle.dumps(t, 2),
    "gzip": lambda t: gzip.compress(pickle.dumps(t)),
    "bz2": lambda t: bz2.compress(pickle.dumps(t)),
    "xz": lambda t: lzma.compress(save(t), preset=0),
    "zip of a pickle": lambda t: zipped("weights.pkl", pickle.dumps(t)),
    "zip of a folder": lambda t: with_readme(save(t)),
    "tar": lambda t: tarred("w/weights.safetensors", save(t)),
    "gzip of a tar": lambda t: gzip.compress(tarred("w/weights.pkl", pickle.dumps(t))),
}


@pytest.mark.parametrize("name", FORMATS)
def test_the_content_tells_the_format(name, tmp_path, rng):
    tensors = {"a.weight": rng.standard_normal((300, 7)).astype(np.float32)}
    path = tmp_path / "weights.onnx"  # whatever the suffix says
    path.write_bytes(FORMATS[name](tensors))
    tree = files.read(path).tree
    assert tree.keys() == tensors.keys()
    np.testing.assert_array_equal(tree["a.weight"], tensors["a.weight"], strict=True)


def test_a_pytorch_file_in_an_archive(tmp_path):
    path = write_zip(tmp_path / "a.pth", {"a.b": whole("torch.FloatStorage", np.ones(3, "f4"))})
    (tmp_path / "b.zip").write_bytes(zipped("dir/a.pth", path.read_bytes()))
    np.testing.assert_array_equal(files.read(tmp_path / "b.zip").tree["a.b"], np.ones(3, "f4"))


OTHERS = {
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "Git LFS"),
    "page": (b"<!DOCTYPE html><html><title>Log in</title>", "is a web page instead of weights"),
    "xml": (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
    "error": (b'{"error": "Repository not found"}', "JSON text without a weight_map"),
    "empty": (b"", "is empty; give a file that was saved completely"),
    "empty zip": (b"PK\5\6" + bytes(18), "zip archive without files"),
    "hdf5": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5 file, as Keras writes it"),
    "no weights": (zipped("a.txt", "x"), "an archive with no file of weights: a.txt"),
    "several": (zipped("a.pth", "x", **{"b.pth": "y"}), "several files of weights: a.pth, b.pth"),
    "nested": (zipped("a.pth", zipped("b.pth", "x")), "an archive in an archive"),
    "bomb": (gzip.compress(bytes(10_000_000)), "would grow to more than 100 times"),
    "image": (b"\x89PNG\r\n\x1a\n", "is an image"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_weights_is_named_and_never_called_damaged(name, tmp_path):
    content, sentence = OTHERS[name]
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as error:
        read(path)
    assert not any(word in str(error.value) for word in ("truncated", "damaged"))


@pytest.mark.parametrize("length", [0x80, 0x88B1F])
def test_the_length_of_a_header_may_begin_like_another_format(tmp_path, length):
    """0x80 begins a pickle, 1F 8B a gzip; the length of a safetensors header comes first."""
    tensor = b'"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}'
    header = (b"{" + tensor + b"}").ljust(length)
    path = tmp_path / "a.pkl"
    path.write_bytes(length.to_bytes(8, "little") + header + np.float32([2.5]).tobytes())
    assert formats.of_file(path) == "safetensors"
    assert files.read(path).tree["a"] == 2.5


@pytest.mark.parametrize("kind", ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float16", "int8"])
def test_narrow_numbers_in_safetensors(kind, tmp_path):
    dtype = np.dtype(kind if kind in ("float16", "int8") else getattr(ml_dtypes, kind))
    values = np.array([[0, 1, -2], [0.5, 96, -0.25]]).astype(dtype)
    save_file({"a.b": values, "c.d": np.zeros((0, 2), "f4")}, tmp_path / "f.bin", {"key": "text"})
    contents = files.read(tmp_path / "f.bin")
    assert contents.metadata == {"key": "text"} and contents.tree["c.d"].shape == (0, 2)
    found = contents.tree["a.b"]
    assert found.dtype == (dtype if kind in ("float16", "int8") else np.float32)
    np.testing.assert_array_equal(found.astype(np.float32), values.astype(np.float32))


def test_float8_of_pytorch(tmp_path):
    values = np.array([0, 1, -2, 0.5], ml_dtypes.float8_e4m3fn)
    storage = Storage("torch.storage.UntypedStorage", values.view(np.uint8))
    notes = (False, OrderedDict(), Global("torch.float8_e4m3fn"))
    contents = {"a.b": Call("torch._utils._rebuild_tensor_v3", storage, 0, (2, 2), (2, 1), *notes)}
    found = files.read(write_zip(tmp_path / "f.pth", contents)).tree["a.b"]
    np.testing.assert_array_equal(found, values.astype(np.float32).reshape(2, 2), strict=True)


PYTHON_2 = (
    b"\x80\x02}q\x01U\x0astage0.\xe9ta\x71\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\n"
    b"ndarray\nq\x04K\x00\x85U\x01b\x87R(K\x01K\x02\x85cnumpy\ndtype\nU\x02f4K\x00K\x01\x87R(K\x03"
    b"U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x08\x00\x00\x80?\x00\x00\x00\xc0tbs."
)


def test_pickles_of_python_2_are_read(tmp_path):
    (tmp_path / "f.pkl").write_bytes(PYTHON_2)
    ((key, value),) = files.read(tmp_path / "f.pkl").tree.items()
    assert key == "stage0.\xe9ta" and value.tolist() == [1, -2]
    legacy = b"".join(
        (
            *(pickle.dumps(v, 2) for v in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})),
            PYTHON_2,
            pickle.dumps([], 2),
        )
    )
    (tmp_path / "f.pth").write_bytes(legacy)
    assert files.read(tmp_path / "f.pth").tree.keys() == {key}


def test_npz_files_that_grow_are_refused(tmp_path):
    np.savez_compressed(tmp_path / "f.npz", a=np.zeros(10**6, np.float32))
    assert (tmp_path / "f.npz").stat().st_size < 10_000
    with pytest.raises(UserError, match="f.npz was refused, as its members say that they are far"):
        files.read(tmp_path / "f.npz")


def sparse_tar(name, data, real_size):
    """A tar of a file in GNU's sparse format 0.1: its bytes, and zeros up to its size."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.pax_headers = {
        "GNU.sparse.size": str(real_size),
        "GNU.sparse.numblocks": "1",
        "GNU.sparse.map": f"0,{len(data)}",
    }
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def test_sparse_members_of_tars_are_refused(tensors, tmp_path):
    content = sparse_tar("w/weights.pkl", pickle.dumps(tensors), 10**8)
    for name, data in (("f.tar", content), ("f.tar.gz", gzip.compress(content, 0))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=f"{name} is an archive whose w/weights.pkl is sparse"):
            files.read(tmp_path / name)


def test_objects_in_npz_files_are_left_out(tmp_path):
    np.savez(tmp_path / "f.npz", **{"a.b": np.ones(3), "args": np.array({"lr": 1}, object)})
    assert list(files.read(tmp_path / "f.npz").tree) == ["a.b"]


# ---------------------------------------------------------------- folders, shards, names


def test_a_folder_with_config_json(tensors, tmp_path):
    folder = tmp_path / "hf"
    folder.mkdir()
    timm = {key: np.ascontiguousarray(value) for key, value in tensors.items()}
    save_file(timm, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text('{"architecture": "repghostnet_050"}')
    for path in (folder, folder / "model.safetensors"):
        contents = files.read(path)
        assert contents.config == {"architecture": "repghostnet_050"}
        assert contents.metadata == {"format": "pt"}
    assert catalog.locate(folder) == folder / "model.safetensors"
    other = pickled(tensors, folder / "pytorch_model.bin")  # as older repositories have beside it
    assert files.read(other).config == {"architecture": "repghostnet_050"}
    assert weights.load(folder, ARCH, 5).arch == ARCH
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"cannot read .*config.json"):
        files.read(folder)


def test_a_config_json_of_something_else_is_not_read(tensors, tmp_path):
    path = pickled(tensors, tmp_path / "mine.pth")
    for text in ("{// no JSON", '{"mean": [1, 2, 3], "optimizer": "sgd"}', "[1]"):
        (tmp_path / "config.json").write_text(text)
        assert files.read(path).config is None
    (tmp_path / "config.json").write_text('{"architecture": "repghostnet_050"}')
    assert files.read(path).config == {"architecture": "repghostnet_050"}


def test_a_config_json_beside_this_projects_best_weights_is_not_read(tensors, tmp_path):
    path = pickled(tensors, tmp_path / "best.pkl")
    for text in ("{// no JSON", '{"mean": [1, 2, 3], "optimizer": "sgd"}'):
        (tmp_path / "config.json").write_text(text)
        assert files.read(path).config is None


def test_tensors_of_megengine_are_read(tensors, tmp_path):
    """Also beside the weights, and in a whole module, which is refused for what it is."""
    best = mge.Tensor(np.float32(0.9))
    mge.save({"state_dict": tensors, "best": best}, str(tmp_path / "a.pkl"))
    assert checkpoint.read(tmp_path / "a.pkl").arch == ARCH
    mge.save(mge.module.Conv2d(3, 4, 3), str(tmp_path / "b.pkl"))
    with pytest.raises(recognition.ConversionError, match="holds a whole network, pickled as"):
        checkpoint.read(tmp_path / "b.pkl")


def doubled(levels=40):
    """What has 2^40 items when it is written out."""
    value = ["x"]
    for _ in range(levels):
        value = [value, value]
    return value


def test_values_that_would_fill_the_memory_as_text_are_a_sentence(tensors, tmp_path):
    ours = {"arch": doubled(), "form": "train", "preprocessing": {"color": doubled()}}
    for number, contents in enumerate((ours, {"state_dict": tensors, "total_stride": doubled()})):
        path = pickled(contents, tmp_path / f"{number}.pkl")
        with suppress(UserError):
            checkpoint.read(path)


@pytest.mark.parametrize(
    "size", ["320x256", "320", 10**6, 10**5000], ids=["text", "a number", "large", "larger"]
)
def test_a_size_that_is_not_possible_is_a_sentence(size, tmp_path):
    theirs = in_layout("RepVGGD2se", "repvgg", form="deploy")
    contents = {"state_dict": theirs, "preprocessing": {"size": size, "crop_ratio": 0.9}}
    with pytest.raises(UserError, match="which is not possible here; say --size"):
        checkpoint.read(pickled(contents, tmp_path / "a.pkl"))
    del contents["preprocessing"]["crop_ratio"]
    with pytest.raises(UserError, match="which is not possible here; say --size"):
        checkpoint.read(pickled(contents, tmp_path / "a.pkl"))


def test_text_among_the_tensors_that_are_folded_is_a_sentence():
    theirs = in_layout(ARCH, "repghost", form="deploy")
    key = next(name for name in theirs if name.endswith("weight"))
    theirs[key] = np.full(theirs[key].shape, b"text")
    with pytest.raises(recognition.ConversionError, match="tensors that are no real numbers"):
        recognition.recognize({"state_dict": theirs}, "file")


def test_folders_of_other_kinds(tensors, tmp_path):
    with pytest.raises(UserError, match="is a folder without weights"):
        catalog.locate(tmp_path)
    only = pickled(tensors, tmp_path / "only.pth")
    assert catalog.locate(tmp_path) == only
    pickled(tensors, tmp_path / "second.pkl")
    with pytest.raises(UserError, match=r"several files of weights: only.pth, second.pkl; give"):
        catalog.locate(tmp_path)
    best = pickled(tensors, tmp_path / "best.pkl")  # a run's folder, which has latest.pkl too
    assert catalog.locate(str(tmp_path)) == best


@pytest.mark.parametrize("write, suffix", [(save_file, "safetensors"), (None, "bin")])
def test_shards_with_an_index(tensors, write, suffix, tmp_path):
    write = write or (lambda part, path: pickled(part, path))
    keys = sorted(tensors)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    names = [f"{stem}-0000{i}-of-00002.{suffix}" for i in (1, 2)]
    places = {}
    for name, part in zip(names, (keys[:50], keys[50:]), strict=True):
        write({key: np.ascontiguousarray(tensors[key]) for key in part}, tmp_path / name)
        places |= dict.fromkeys(part, name)
    index = tmp_path / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for path in (index, tmp_path):
        assert read(catalog.locate(path)).arch == ARCH
    (tmp_path / names[1]).unlink()
    with pytest.raises(UserError, match=rf"the index of 2 files, but {names[1]} is not beside it"):
        read(index)
    index.write_text(json.dumps({"weight_map": {"a": "../b.safetensors"}}))
    with pytest.raises(UserError, match="names files outside of its folder"):
        read(index)


def test_names_of_published_weights(monkeypatch):
    fetched = []
    monkeypatch.setattr("weights.download.fetch", lambda *asked: fetched.append(asked))
    catalog.locate("timm:repvgg_a0")
    catalog.locate("basecls:repvgg_a0")
    catalog.locate("mmpretrain:mobileone-s0_8xb32_in1k")
    catalog.locate("chenyaofo:cifar100_repvgg_a2")
    urls, known = zip(*fetched, strict=True)
    assert urls[0].startswith("https://") and urls[0].endswith("/main/model.safetensors")
    assert urls[1].endswith("repvgg_a0/repvgg_a0.pkl")
    assert urls[2].endswith("/mobileone/mobileone-s0_8xb32_in1k_20221110-0bc94952.pth")
    assert urls[3].endswith("/releases/download/repvgg/cifar100_repvgg_a2-8e71b1f8.pt")
    assert known == ("", "", "0bc94952", "8e71b1f8")
    with pytest.raises(UserError, match="has no address of its own; download it from https://"):
        catalog.locate("apple:mobileone_s0")
    with pytest.raises(UserError, match="timm has published no 'repvgg_z'; the names are"):
        catalog.locate("timm:repvgg_z")


def test_pretrained_true_is_one_sentence():
    import hubconf

    for value in (True, 3):
        with pytest.raises(UserError, match=f"{value} names no weights; give a file"):
            hubconf.repghost050(pretrained=value)
    with pytest.raises(ValueError, match=r"use weights.load\('FILE', 'RepGhost050'\)$"):
        models.create(ARCH, pretrained=True)
    assert models.create(ARCH, 2, pretrained=False).options == {}
    assert hubconf.repghost050(pretrained=False, num_classes=2).num_classes == 2


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize("form", ["train", "deploy"])
@pytest.mark.parametrize("arch", slow_but(ONE_OF_EACH, models.list_models()))
def test_own_state_dicts_of_every_network_are_recognized(arch, form):
    state = {
        key: np.broadcast_to(np.float32(1), shape)
        for key, shape in shapes_of(arch, 5, form).items()
    }
    foreign = recognition.recognize(state, "file")
    assert foreign.source.name == "own" and foreign.source.preprocessing is None
    fused_twin = arch.removesuffix("-qa") if form == "deploy" else arch
    assert (foreign.arch, foreign.num_classes) == (fused_twin, 5)
    assert foreign.state_dict.keys() == state.keys()


def test_qarepvggs_own_keys():
    theirs = in_layout("RepVGGA0-qa", "qarepvgg")
    assert {"stage1.0.rbr_1x1.weight", "stage1.0.bn.weight", "stage1.0.rbr_dense.bn.bias"} <= set(
        theirs
    )
    foreign = recognition.recognize({"state_dict": prefixed("module.", theirs)}, "file")
    assert (foreign.source.name, foreign.arch) == ("qarepvgg", "RepVGGA0-qa")
    fused = in_layout("RepVGGA0-qa", "qarepvgg", form="deploy")
    assert recognition.recognize(fused, "file", "RepVGGA0-qa").arch == "RepVGGA0-qa"
    assert recognition.recognize(fused, "file", source="qarepvgg").arch == "RepVGGA0-qa"
    plain = in_layout("RepVGGA0", "repvgg")
    with pytest.raises(recognition.ConversionError, match="fits no architecture; the nearest"):
        recognition.recognize(plain, "file", source="qarepvgg")
    with pytest.raises(recognition.ConversionError, match="holds no RepVGGA0 and fits"):
        recognition.recognize(plain, "file", "RepVGGA0", source="qarepvgg")
    with pytest.raises(recognition.ConversionError, match="fits no architecture"):
        recognition.recognize({k: v for k, v in theirs.items() if k != "stage0.bn.weight"}, "file")


@pytest.mark.parametrize(
    "arch, layout, key",
    [
        ("RepVGGA0", "repvgg", "linear.weight"),
        ("MobileOneS0", "timm", "head.fc.weight"),
        ("RepGhost050", "repghost", "classifier.weight"),
        ("FastViTT8", "apple", "head.weight"),
    ],
)
def test_a_classifier_without_its_weight_is_no_backbone(arch, layout, key):
    theirs = in_layout(arch, layout)
    with pytest.raises(recognition.ConversionError, match=f"is {arch}, but linear.weight is miss"):
        recognition.recognize({k: v for k, v in theirs.items() if k != key}, "file")


def test_averaged_weights_that_are_no_whole_network_are_named(tensors):
    averaged = {k: v for k, v in tensors.items() if "running_" not in k and "num_b" not in k}
    foreign = recognition.recognize({"model": tensors, "ema": {"shadow": averaged}}, "file")
    assert foreign.entry == "model"
    assert "the averaged weights 'ema.shadow' are not taken, as they lack what a" in foreign.note
    assert "running_mean is missing" in foreign.note


def test_a_full_disk_is_no_fault_of_the_file(tensors, tmp_path, monkeypatch):
    path = tmp_path / "weights.pkl.gz"
    path.write_bytes(gzip.compress(pickle.dumps(tensors)))

    class Full(io.BytesIO):
        def write(self, _):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(archives.tempfile, "NamedTemporaryFile", lambda **_: Full())
    with pytest.raises(UserError, match="weights.pkl.gz is compressed, and unpacking it needs"):
        files.read(path)


def test_a_file_that_is_compressed_twice_is_refused(tensors, tmp_path, rng):
    tensors = {k: rng.standard_normal(v.shape, np.float32) for k, v in tensors.items()}
    whole = pickled(tensors, tmp_path / "a.pkl").read_bytes()
    (tmp_path / "once.pkl.gz").write_bytes(gzip.compress(whole))
    assert files.read(tmp_path / "once.pkl.gz").tree.keys() == tensors.keys()
    (tmp_path / "twice.pkl.gz").write_bytes(gzip.compress(gzip.compress(whole)))
    with pytest.raises(UserError, match="is compressed twice; decompress it"):
        files.read(tmp_path / "twice.pkl.gz")


def test_a_name_that_no_file_can_have_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="cannot read .*: File name too long"):
        catalog.locate(str(tmp_path / ("a" * 300)))


HEADS = {
    ("RepVGGA0", "repvgg"): ("linear.",),
    ("MobileOneS0", "timm"): ("head.",),
    ("RepGhost050", "timm"): ("classifier.",),
    ("RepGhost050", "repghost"): ("classifier.", "conv_head.", "blocks.9."),
    ("RepViTM0_6", "timm"): ("head.",),
    ("RepVGGA0", "own"): ("linear.",),
    ("FastViTT8", "apple"): ("head.", "conv_exp."),
    ("FastViTT8", "own"): ("linear.", "last."),
}


@pytest.mark.parametrize("form", slow_but(["train"], ["train", "deploy"]))
@pytest.mark.parametrize(
    "arch, layout", slow_but([of for of in HEADS if of[0] != "RepGhost050"], HEADS)
)
def test_backbones_without_a_classifier(arch, layout, form, tmp_path):
    theirs = in_layout(arch, layout, form=form)
    theirs = {k: v for k, v in theirs.items() if not k.startswith(HEADS[arch, layout])}
    path = pickled(prefixed("backbone.", theirs), tmp_path / "backbone.pkl")
    found = read(path, stated={"color": ("RGB", "--color")})
    assert (found.arch, found.form, found.num_classes) == (arch, form, 0)
    expected = "repghost" if arch == "RepGhost050" else layout  # timm's keys are RepGhost's own
    assert found.source.startswith(f"{expected} (")
    with pytest.raises(UserError, match="is a backbone without a classifier; fine-tune it by"):
        weights.load(found)
    checkpoint.save(found, tmp_path / "ours.pkl")
    again = read(tmp_path / "ours.pkl")
    assert again.num_classes == 0
    if arch != "RepGhost050":  # the others take long to build
        return
    network = weights.load(again, classifier=False)
    values = network.state_dict()
    assert all(np.array_equal(values[key], value) for key, value in again.state_dict.items())
    if form == "train":
        tuned, dropped = weights.load_for_fine_tuning(again, arch, 3)
        assert tuned.num_classes == 3 and dropped == []


def nested(contents, level, times):
    for _ in range(times):
        contents = level(contents)
    return contents


@pytest.mark.parametrize("level", [lambda x: {"l": x, "r": x}, lambda x: [x] * 1000])
def test_containers_in_several_places_are_searched_once(tensors, tmp_path, level):
    path = pickled(nested({"model": tensors}, level, 40), tmp_path / "shared.pkl")
    assert read(path).arch == ARCH
    twice = pickled({"model": tensors, "ema": tensors}, tmp_path / "twice.pkl")
    assert [read(twice, entry=name).entry for name in ("model", "ema")] == ["model", "ema"]


@pytest.mark.parametrize("level", [lambda x: {"a": x}, lambda x: [x], lambda x: (x, 1)])
def test_a_tree_that_is_too_deep_is_a_sentence(tensors, tmp_path, level):
    assert read(pickled(nested(tensors, level, 100), tmp_path / "deep.pkl")).arch == ARCH
    tree = nested(tensors, level, 101)
    with pytest.raises(UserError, match="deeper.pkl has dicts and lists .* more than 100 deep"):
        recognition.recognize(tree, "deeper.pkl")
    code = b"\x80\x02" + b"}U\x01a" * 5000 + b"}" + b"s" * 5000 + b"."
    (tmp_path / "deepest.pkl").write_bytes(code)
    with pytest.raises(UserError, match="deepest.pkl has dicts and lists"):
        read(tmp_path / "deepest.pkl")


def repvgg_backbone(layout, form, arch="RepVGGA0"):
    theirs = in_layout(arch, layout, form=form)
    return {k: v for k, v in theirs.items() if not k.startswith(("linear.", "head."))}


def test_the_framework_tells_a_repvgg_backbone_from_baseclss(tmp_path):
    for layout, form, arch, color in (
        ("repvgg", "train", "RepVGGA0", "RGB"),
        ("repvgg", "train", "RepVGGB1g4", "RGB"),
        ("basecls", "train", "RepVGGB1g4", "BGR"),
        ("basecls", "deploy", "RepVGGA0", "BGR"),
    ):
        found = read(pickled(repvgg_backbone(layout, form, arch), tmp_path / f"{layout}.pkl"))
        assert found.source.startswith(f"{layout} (") and found.preprocessing.color == color
        assert found.preprocessing.resize_backend == ("opencv" if color == "BGR" else "pillow")
        assert found.num_classes == 0 and found.form == form


def test_a_backbone_that_may_be_of_two_repositories_needs_its_colour_order(tmp_path, command):
    for layout, form in (("repvgg", "deploy"), ("basecls", "train")):
        path = pickled(repvgg_backbone(layout, form), tmp_path / "backbone.pkl")
        with pytest.raises(UserError, match="nothing says whether .* takes RGB or BGR images"):
            read(path)
        assert read(path, source="repvgg").preprocessing.color == "RGB"
        assert read(path, source="basecls").preprocessing.color == "BGR"
        given = read(path, stated={"color": ("BGR", "--color")})
        assert given.preprocessing.color == "BGR" and given.source.startswith(f"{layout} (")
    whole_network = pickled(in_layout("RepVGGA0", "repvgg", form="deploy"), tmp_path / "whole.pkl")
    assert read(whole_network).origins["color"] == "assumed: DingXiaoH/RepVGG's for RepVGG-A0"
    status, _, err = command(
        "convert_pretrained_weight", "--origin-dir", path, "--save-dir", tmp_path / "ours.pkl"
    )
    assert status == 2 and "give --color rgb or --color bgr" in err


def test_formats_of_exported_files(tmp_path):
    for content, kind in (
        (b"\x08\x08\x12\x05maker:\x00", "onnx"),
        (b"\xfc\x03@\0\x1c\0\0\0mgv2\x14\0", "mge"),
    ):
        (tmp_path / "file.bin").write_bytes(content)
        assert formats.of_file(tmp_path / "file.bin") == kind
        with pytest.raises(UserError, match="is an exported network, not a checkpoint"):
            read(tmp_path / "file.bin")
    (tmp_path / "file.onnx").write_bytes(b"damaged")
    assert formats.of_file(tmp_path / "file.onnx") == "onnx"


@pytest.mark.parametrize("arch, layout", [("RepVGGA0", "timm"), ("RepGhost050", "timm")])
@pytest.mark.parametrize("prefix", ["", "encoder.model."])
def test_names_of_timms_feature_extractors(arch, layout, prefix):
    """timm.create_model(..., features_only=True) flattens the names of sequences."""
    flat = {
        prefix + re.sub(r"^(stages|blocks)\.(\d+)\.", r"\1_\2.", key): tensor
        for key, tensor in in_layout(arch, layout).items()
        if not key.startswith(("head.", "classifier.", "conv_head."))
    }
    assert any("_0." in key for key in flat)
    foreign = recognition.recognize(flat, "file")
    assert (foreign.arch, foreign.num_classes, foreign.note) == (arch, 0, None)


def test_a_matrix_beside_a_backbone_is_said():
    """As the classifier of a user's own network around a backbone of timm's."""
    theirs = in_layout("RepVGGA0", "timm")
    own = {f"backbone.{key}": v for key, v in theirs.items() if not key.startswith("head.")}
    own |= {"fc.weight": np.ones((10, 1280), np.float32), "fc.bias": np.ones(10, np.float32)}
    for prefix in ("", "module."):
        foreign = recognition.recognize({prefix + key: v for key, v in own.items()}, "file")
        assert foreign.num_classes == 0
        assert foreign.note == (
            "fc.weight and fc.bias are left out, so that the network has no classifier; if they "
            "are its classifier, rename them to head.fc.weight and head.fc.bias"
        )
    with pytest.raises(checkpoint.CheckpointError, match=r"backbone without .*rename them to head"):
        weights.load(checkpoint.of_foreign(foreign, "file"))


def test_checkpoints_of_mmengine_are_known_by_their_versions():
    """Their ema_state_dict has the raw weights, whatever the layout."""
    theirs = in_layout("RepVGGA0", "timm")
    raw = {f"module.{key}": 2 * tensor for key, tensor in theirs.items()}
    tree = {"meta": {"mmengine_version": "0.10.4"}, "state_dict": theirs, "ema_state_dict": raw}
    assert recognition.recognize(tree, "file").entry == "state_dict"
